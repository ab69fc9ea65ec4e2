"""Log lines name the request that they are about, and contain no text of a caller."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import copy_context
from typing import Any

import pytest
from bert_serving.protocol import EncodeRequest
from bert_serving.protocol.trace_names import TraceNames
from bert_serving.protocol.workers import Batch, Part, worker_message_from_frames, worker_message_to_frames
from bert_serving.server.broker.account import Account
from bert_serving.server.broker.batching import InFlightBatch
from bert_serving.server.broker.job import Job, Slice
from bert_serving.server.gateway.calls import REQUEST_ID, call_of
from bert_serving.server.gateway.calls import TRACE_ID as SCOPE_TRACE_ID
from bert_serving.server.logs import JsonLines, RequestIds, WithoutMessages, note_request
from fastapi import Request

SECRET = "zanzibar"


def formatted(formatter: logging.Formatter) -> str:
    def fail(_text: str) -> None:
        raise ValueError(f"cannot read {_text}")

    try:
        fail(SECRET)
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "path", 1, "cannot encode", (), sys.exc_info())
    return formatter.format(record)


def test_the_message_of_an_exception_is_not_logged() -> None:
    assert SECRET in formatted(logging.Formatter())
    line = formatted(WithoutMessages())
    assert SECRET not in line
    assert line.startswith("cannot encode\nTraceback")
    assert "in fail" in line
    assert line.endswith("ValueError (-verbose logs its message, too)")


@pytest.mark.parametrize(
    ("traces", "said"),
    [
        (["a", None, "a", "b/c"], "a,-,b/c"),
        (["a,b", "c d", 'e=", "'], r'"a,b","c d","e=\", \""'),
        ([f"r{i}" for i in range(20)], "r0,r1,r2,r3,r4,r5,r6,r7,and 12 more"),
        ([], ""),
    ],
)
def test_a_batch_has_the_names_of_its_requests(traces: list[str | None], said: str) -> None:
    batch = Batch(1, [Part(["text"], trace=trace) for trace in traces])
    assert str(batch.traces) == said
    received = worker_message_from_frames(worker_message_to_frames(batch))
    assert isinstance(received, Batch)
    assert received.traces == batch.traces
    held = Account(1 << 20, share=1.0).reserve(b"", 1)
    jobs = [Job(1, EncodeRequest(b"a", b"1", ["text"], trace=trace), 0.0, b"", held, held) for trace in traces]
    assert InFlightBatch([Slice(job, 0, 1) for job in jobs], 1.0).traces == batch.traces


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def event(message: str = "something", **extra: object) -> dict[str, Any]:
    """Return the JSON object of an event. extra: attributes of the record."""
    record = logging.makeLogRecord(
        {"name": "a.logger", "levelname": "INFO", "msg": message, "created": 0.25, **extra}
    )
    line = JsonLines("worker-0", WithoutMessages()).format(record)
    assert "\n" not in line
    return dict(json.loads(line))


def test_an_event_is_one_line_of_json() -> None:
    assert event("two\nlines \ud800 é") == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "a.logger",
        "process": "worker-0",
        "message": "two\nlines \ud800 é",
    }


def test_an_exception_in_json_has_no_message() -> None:
    line = formatted(JsonLines("server", WithoutMessages()))
    assert SECRET not in line
    assert json.loads(line)["exception"].endswith("ValueError (-verbose logs its message, too)")
    assert SECRET in json.loads(formatted(JsonLines("server", logging.Formatter())))["exception"]


@pytest.mark.parametrize(
    ("extra", "ids"),
    [
        ({"trace": f"mine/{TRACE_ID}"}, {"request_id": "mine", "trace_id": TRACE_ID}),
        ({"trace": "a/b"}, {"request_id": "a/b"}),
        ({"trace": f"-/{TRACE_ID}"}, {"trace_id": TRACE_ID}),
        ({"trace": None}, {}),
        ({"trace": f"a/{TRACE_ID}x"}, {"request_id": f"a/{TRACE_ID}x"}),
        ({"traces": TraceNames()}, {}),
        ({"traces": TraceNames(("-",))}, {}),
        ({"traces": TraceNames(("a,b",))}, {"request_id": "a,b"}),
        ({"traces": TraceNames((f"mine/{TRACE_ID}",))}, {"request_id": "mine", "trace_id": TRACE_ID}),
        (
            {"traces": TraceNames((f"mine/{TRACE_ID}", "-", "a,b"), num_more=7)},
            {"requests": [f"mine/{TRACE_ID}", "-", "a,b"], "num_requests": 10},
        ),
        ({"fields": {"status": 200}}, {"status": 200}),
    ],
)
def test_an_event_names_its_requests(extra: dict[str, object], ids: dict[str, object]) -> None:
    assert {name: value for name, value in event(**extra).items() if name not in event()} == ids


@pytest.mark.parametrize("trace_id", ["", TRACE_ID])
@pytest.mark.parametrize(
    "request_id", ["mine", "a,b", "/", "a/b", "a/", f"a/{TRACE_ID}", f"/{TRACE_ID}/", "-", "a b="]
)
def test_a_caller_may_choose_any_request_id(request_id: str, trace_id: str) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "headers": [],
        "client": None,
        REQUEST_ID: request_id,
        SCOPE_TRACE_ID: trace_id,
    }
    trace = call_of(Request(scope)).trace
    ids = {"request_id": request_id, "trace_id": trace_id}
    expected = {name: value for name, value in ids.items() if value and value != "-"}
    for extra in ({"trace": trace}, {"traces": TraceNames.of([trace])}):
        found = event(**extra)
        assert {name: found[name] for name in found if name in (*ids, "requests")} == expected


def test_every_event_of_a_task_names_its_request() -> None:
    def task() -> dict[str, Any]:
        note_request(RequestIds("mine", TRACE_ID, "00f067aa0ba902b7"))
        return event()

    found = copy_context().run(task)
    assert (found["request_id"], found["trace_id"], found["span_id"]) == ("mine", TRACE_ID, "00f067aa0ba902b7")
    assert "request_id" not in event()
