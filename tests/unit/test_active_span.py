"""A client sends the active span of its program, and needs no OpenTelemetry for that."""

from __future__ import annotations

import sys

import pytest
from bert_serving.client.active_span import active_trace_context
from bert_serving.client.producer import Producer
from bert_serving.protocol import TraceContext
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("flags", "state", "expected"),
    [
        (1, TraceState([("a", "b"), ("c", "d")]), TraceContext(f"{TRACEPARENT}-01", "a=b,c=d")),
        (0, TraceState(), TraceContext(f"{TRACEPARENT}-00")),
    ],
)
def test_the_active_span_is_sent_with_its_flags_and_its_state(
    flags: int, state: TraceState, expected: TraceContext
) -> None:
    context = SpanContext(TRACE_ID, SPAN_ID, is_remote=False, trace_flags=TraceFlags(flags), trace_state=state)
    with trace.use_span(NonRecordingSpan(context)):
        assert active_trace_context() == expected
    assert active_trace_context() is None


def test_a_program_without_opentelemetry_has_no_active_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert active_trace_context() is None
    assert "opentelemetry.trace" not in sys.modules


def test_the_thread_of_encode_async_has_the_active_span_of_its_caller() -> None:
    found: list[TraceContext | None] = []
    context = SpanContext(TRACE_ID, SPAN_ID, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        producer = Producer(
            lambda _: found.append(active_trace_context()), [["a"]], limit=None, has_room=lambda: True
        )
    producer.start()
    producer.join()
    assert found == [TraceContext(f"{TRACEPARENT}-01")]
