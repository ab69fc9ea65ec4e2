"""The OpenTelemetry span that is active in the program that calls a client."""

from __future__ import annotations

import sys

from bert_serving.protocol import TraceContext


def active_trace_context() -> TraceContext | None:
    """Return the context of the active span; None if there is none, or if the program does not use OpenTelemetry.

    A program that has an active span has imported OpenTelemetry, so nothing is imported here.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    traceparent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    return TraceContext(traceparent, span.trace_state.to_header() or None)
