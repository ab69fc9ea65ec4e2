"""The spans of a gateway: one for each HTTP request, after OpenTelemetry's conventions for HTTP servers.

No span has a text, a key, a path or a query string: a caller could write anything there. Only the request id
is the caller's own, if the caller sent one.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from ..server.gateway.calls import TRACE_ID, trace_id_of
from ..server.gateway.facts import FACTS, RequestFacts
from ..server.gateway.http_protocol import LEFT
from ..server.gateway.metrics import UNKNOWN_ROUTE
from ..server.logs import RequestIds, note_request
from .export import Export, OnLost

_PROPAGATOR = TraceContextTextMapPropagator()
_SERVER_ERROR = 500


class HttpTraces:
    """Makes the spans of a gateway process. The arguments are those of Export."""

    def __init__(self, endpoint: str | None, *, process: str, version: str, on_lost: OnLost) -> None:
        self._export = Export(endpoint, process=process, version=version, on_lost=on_lost)

    def close(self) -> None:
        """See Export."""
        self._export.close()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return an application that traces the requests to another one."""
        return TraceRequests(app, self._export.tracer)


class TraceRequests:
    """Makes a span of each request. While the request is handled, its span is the active one.

    So the gateway's AsyncBertClient sends it to the broker, like that of any other program.
    """

    def __init__(self, app: ASGIApp, tracer: trace.Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts: RequestFacts = scope[FACTS]
        span = self._begin(facts)
        ids = span.get_span_context()
        scope[TRACE_ID] = f"{ids.trace_id:032x}"
        note_request(RequestIds(facts.request_id, facts.trace_id, f"{ids.span_id:016x}"))
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                await self._app(scope, receive, send)
        finally:
            self._end(span, facts)

    def _begin(self, facts: RequestFacts) -> Span:
        return self._tracer.start_span(
            _method(facts),
            context=_parent_of(facts.scope),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": facts.method,
                "url.scheme": facts.scope["scheme"],
                "network.protocol.version": facts.scope["http_version"],
                "bert_serving.request_id": facts.request_id,
            },
        )

    def _end(self, span: Span, facts: RequestFacts) -> None:
        now_ns = time.time_ns()
        if span.is_recording():
            if facts.computed_ns is not None:
                reply = self._tracer.start_span(
                    "reply", context=trace.set_span_in_context(span, Context()), start_time=facts.computed_ns
                )
                reply.end(now_ns)
            _describe(span, facts)
        span.end(now_ns)


def _describe(span: Span, facts: RequestFacts) -> None:
    """Add what is known when a request has ended."""
    if facts.route != UNKNOWN_ROUTE:
        span.update_name(f"{_method(facts)} {facts.route}")
        span.set_attribute("http.route", facts.route)
    if facts.key_name is not None:
        span.set_attribute("bert_serving.key", facts.key_name)
    if facts.num_texts:
        span.set_attribute("bert_serving.texts", facts.num_texts)
        span.set_attribute("bert_serving.tokens", facts.num_tokens)
    status = facts.ended_with or facts.status
    if status != LEFT:
        span.set_attribute("http.response.status_code", status)
    if status == LEFT or status >= _SERVER_ERROR:
        span.set_attribute("error.type", "caller_left" if status == LEFT else str(status))
    if status >= _SERVER_ERROR:
        span.set_status(StatusCode.ERROR)


def _method(facts: RequestFacts) -> str:
    return "HTTP" if facts.method == "_OTHER" else facts.method


def _parent_of(scope: Scope) -> Context:
    """Return the context of the caller's span; an empty one if the headers name none, or several."""
    if not trace_id_of(scope):
        return Context()
    carrier = {"traceparent": _header(scope, b"traceparent"), "tracestate": _header(scope, b"tracestate")}
    return _PROPAGATOR.extract(carrier, Context())


def _header(scope: Scope, wanted: bytes) -> str:
    """Return a header. If it came several times, the values are joined, as W3C requires it of tracestate."""
    return ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == wanted)
