"""The access log: one event for each HTTP request that reached the application.

It never contains a text, an API key, a path or a query string: a caller could write anything there. Only the
request id is the caller's own, if the caller sent one.
"""

from __future__ import annotations

import logging

from bert_serving.protocol.trace_names import quoted

from .facts import RequestFacts

log = logging.getLogger("bert_serving.access")


def log_request(facts: RequestFacts) -> None:
    """Log a request that has its response, or whose caller has left."""
    fields = {
        "method": facts.method,
        "route": facts.route,
        "status": facts.status,
        "seconds": round(facts.seconds, 6),
        "request_id": facts.request_id,
        "trace_id": facts.trace_id or None,
        "key": facts.key_name,
        "texts": facts.num_texts,
        "tokens": facts.num_tokens,
    }
    known = {name: value for name, value in fields.items() if value is not None}
    line = " ".join(f"{name}={quoted(value)}" for name, value in known.items())
    log.info("request %s", line, extra={"fields": known})
