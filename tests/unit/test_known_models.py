"""A gateway notices that the server has loaded another model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bert_serving.protocol import Unavailable
from bert_serving.server.gateway.known_models import KnownModels, ServerStatus, WorkerStatus
from tokenizers import Tokenizer, models


class FakeServer:
    """The status of a server. num_reads: how often it was requested."""

    def __init__(self, *workers: WorkerStatus, newest: str = "") -> None:
        self.workers = workers
        self.newest = newest
        self.num_reads = 0
        self.answers = True

    async def status(self) -> ServerStatus:
        self.num_reads += 1
        if not self.answers:
            raise Unavailable("the server did not answer within 5 s")
        return {"workers": [*self.workers], "model": self.newest}  # type: ignore[typeddict-item]


def worker(fingerprint: str) -> WorkerStatus:
    return {
        "name": "w",
        "state": "ready",
        "fingerprint": fingerprint,
        "kind": "classifier",
        "labels": [fingerprint],
    }


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the gateway reads; a test may change it."""
    time = [1000.0]
    monkeypatch.setattr("bert_serving.server.gateway.known_models.time.monotonic", lambda: time[0])
    return time


def labels_of_newest(known: KnownModels) -> list[str]:
    return list(asyncio.run(known.newest()).labels)


def labels_of(known: KnownModels, fingerprint: str) -> list[str]:
    return list(asyncio.run(known.of(fingerprint)).labels)


def test_until_a_worker_is_ready_the_model_is_unavailable() -> None:
    server = FakeServer({"name": "w", "state": "starting"})
    known = KnownModels(server.status, Path())
    with pytest.raises(Unavailable, match="still loading"):
        labels_of_newest(known)
    server.workers, server.newest = (worker("A"),), "A"
    assert labels_of_newest(known) == ["A"]


def test_the_newest_model_is_read_again_after_two_seconds(now: list[float]) -> None:
    server = FakeServer(worker("A"), newest="A")
    known = KnownModels(server.status, Path())
    assert labels_of_newest(known) == ["A"]
    server.workers, server.newest = (worker("A"), worker("B")), "B"
    assert labels_of_newest(known) == ["A"]
    now[0] += 2.1
    assert [labels_of_newest(known) for _ in range(3)] == [["B"]] * 3
    assert server.num_reads == 2


def test_a_reply_is_described_by_the_model_that_has_computed_it() -> None:
    server = FakeServer(worker("A"), newest="A")
    known = KnownModels(server.status, Path())
    labels_of_newest(known)
    server.workers, server.newest = (worker("B"),), "B"
    assert labels_of(known, "B") == ["B"]  # an unknown fingerprint is looked up at once
    assert labels_of(known, "A") == ["A"]  # a reply of the old model may arrive late
    assert server.num_reads == 2
    assert labels_of_newest(known) == ["B"]


def test_what_is_known_is_used_while_the_server_does_not_answer(now: list[float]) -> None:
    server = FakeServer(worker("A"), newest="A")
    known = KnownModels(server.status, Path())
    labels_of_newest(known)
    server.answers = False
    now[0] += 10
    assert labels_of_newest(known) == ["A"]
    with pytest.raises(Unavailable):
        labels_of_newest(KnownModels(server.status, Path()))


def test_each_model_has_its_own_tokenizer(tmp_path: Path, now: list[float]) -> None:
    for pad_id, fingerprint in enumerate("AB"):
        vocabulary = {"<pad>": pad_id, "<unk>": 1 - pad_id}
        Tokenizer(models.WordLevel(vocabulary, "<unk>")).save(str(tmp_path / f"tokenizer-{fingerprint}.json"))
    workers = [WorkerStatus(**worker(fingerprint), splits_specials=False) for fingerprint in "AB"]
    server = FakeServer(*workers, newest="A")
    known = KnownModels(server.status, tmp_path)
    first = asyncio.run(known.tokenizer())
    assert asyncio.run(known.tokenizer()) is first
    server.newest = "B"
    now[0] += 10
    second = asyncio.run(known.tokenizer())
    assert [first.token_to_id("<pad>"), second.token_to_id("<pad>")] == [0, 1]


def test_without_a_tokenizer_file_only_its_routes_are_unavailable(tmp_path: Path) -> None:
    server = FakeServer(WorkerStatus(**worker("A"), splits_specials=False), newest="A")
    known = KnownModels(server.status, tmp_path)
    assert labels_of_newest(known) == ["A"]
    with pytest.raises(Unavailable, match="no tokenizer file"):
        asyncio.run(known.tokenizer())
