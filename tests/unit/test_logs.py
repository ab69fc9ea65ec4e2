"""Log lines name the request that they are about, and contain no text of a caller."""

from __future__ import annotations

import logging
import sys

import pytest
from bert_serving.protocol import EncodeRequest
from bert_serving.protocol.workers import Batch, Part, worker_message_from_frames, worker_message_to_frames
from bert_serving.server.broker.account import Account
from bert_serving.server.broker.batching import InFlightBatch
from bert_serving.server.broker.job import Job, Slice
from bert_serving.server.supervisor.child import WithoutMessages

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
        ([f"r{i}" for i in range(20)], "r0,r1,r2,r3,r4,r5,r6,r7,and 12 more"),
        ([], ""),
    ],
)
def test_a_batch_has_the_names_of_its_requests(traces: list[str | None], said: str) -> None:
    batch = Batch(1, [Part(["text"], trace=trace) for trace in traces])
    assert batch.traces == said
    received = worker_message_from_frames(worker_message_to_frames(batch))
    assert isinstance(received, Batch)
    assert received.traces == said
    held = Account(1 << 20, share=1.0).reserve(b"", 1)
    jobs = [Job(1, EncodeRequest(b"a", b"1", ["text"], trace=trace), 0.0, b"", held, held) for trace in traces]
    assert InFlightBatch([Slice(job, 0, 1) for job in jobs], 1.0).traces == said
