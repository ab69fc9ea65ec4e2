"""Equal texts are computed once: which texts follow others, and what happens if the others have no vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from bert_serving.protocol import EncodeOptions, EncodeRequest, InvalidRequest, Text
from bert_serving.protocol.workers import Batch, Rejected, Result, Vectors
from bert_serving.server.broker.job import Job
from bert_serving.server.broker.repeats import Repeats
from bert_serving.server.broker.scheduler import Failure, Scheduler
from bert_serving.server.broker.sizes import ResultSizes
from bert_serving.server.broker.vector_cache import VectorCache, keys_of, kind_of

from tests.support.model_facts import model_facts

ALICE, BOB = b"alice", b"bob"


class Stage:
    """A scheduler with one worker. sent: the texts of each batch that the worker got."""

    def __init__(self, *, cache_bytes: int = 0, poolings: Sequence[str] = ("REDUCE_MEAN",)) -> None:
        sizes = ResultSizes(max_seq_len=512)
        self.repeats = Repeats(sizes, cache_bytes=cache_bytes)
        self.scheduler = Scheduler(
            memory_bytes=64 << 20,
            queue_capacity=10_000,
            flow_share=1.0,
            sizes=sizes,
            max_batch_size=256,
            priority_batch_size=16,
            max_seq_len=512,
            repeats=self.repeats,
        )
        self.poolings = poolings
        self.start("w0", "A")
        self.sent: list[list[Text]] = []
        self._ids = itertools.count(1)

    def start(self, name: str, fingerprint: str) -> None:
        facts = model_facts(dimension=1, hidden_size=1, fingerprint=fingerprint, poolings=self.poolings)
        self.scheduler.worker_ready(name, facts)

    def submit(self, who: bytes, texts: list[Text], **options: object) -> Job:
        request = EncodeRequest(who, b"%d" % next(self._ids), texts, EncodeOptions(**options))  # type: ignore[arg-type]
        return self.scheduler.submit(request, 0.0)

    def next_batch(self) -> Batch:
        batch = self.scheduler.next_batch("w0", 0.0)
        assert batch is not None
        self.sent.append([text for part in batch.parts for text in part.texts])
        return batch

    def complete(self, batch: Batch) -> list[Job | Failure]:
        return self.scheduler.complete("w0", computed(batch), 0.0)

    def finish(self) -> list[Job | Failure]:
        """Send and complete batches until nothing is left to do."""
        ended: list[Job | Failure] = []
        while not self.scheduler.is_idle:
            ended += self.complete(self.next_batch())
        assert len(self.repeats.in_flight) == 0
        return ended


_numbers = itertools.count(1)


def computed(batch: Batch) -> Result:
    """Return a result in which no two rows are equal, and every fourth text is truncated."""
    parts = []
    for part in batch.parts:
        numbers = [next(_numbers) for _ in part.texts]
        rows = np.array([[number] for number in numbers], np.float32)
        parts.append(Vectors(rows, [3] * len(numbers), [i for i in range(len(numbers)) if i % 4 == 3]))
    return Result(batch.batch_id, parts, compute_ms=10.0)


def rows_of(job: Job) -> list[float]:
    assert job.is_done
    assert job.result.rows is not None
    return [float(row[0]) for row in job.result.rows]


def test_equal_texts_of_one_request_are_computed_once() -> None:
    stage = Stage()
    texts: list[Text] = ["a", "b", "a", "c", "d", "d", "a"]
    job = stage.submit(ALICE, texts)
    assert stage.finish() == [job]
    assert sorted(stage.sent[0], key=str) == ["a", "b", "c", "d"]
    assert len(stage.sent) == 1
    rows = rows_of(job)
    assert [rows.index(row) for row in rows] == [0, 1, 0, 3, 4, 4, 0]
    assert job.result.num_tokens == [3] * 7
    assert job.waiting.amount == 0
    assert job.compute_ms == 10.0, (
        "the time of the batch counts once, though the batch has several parts of the job"
    )


def test_a_text_that_is_in_flight_is_not_sent_for_another_client() -> None:
    stage = Stage()
    first = stage.submit(ALICE, ["a", "b"])
    batch = stage.next_batch()
    second, third = stage.submit(BOB, ["b"], show_usage=True), stage.submit(BOB, ["b", "a", "c"])
    assert stage.scheduler.num_waiting == 1
    assert stage.complete(batch) == [first, second]
    assert stage.finish() == [third]
    assert stage.sent == [["a", "b"], ["c"]]
    assert rows_of(second) == rows_of(first)[1:]
    assert rows_of(third)[:2] == rows_of(first)[::-1]
    assert second.queue_s(9.0) == 0.0


def test_a_small_request_does_not_wait_for_the_texts_of_a_large_one() -> None:
    stage = Stage()
    texts: list[Text] = [str(i) for i in range(300)]
    large = stage.submit(ALICE, texts)
    batch = stage.next_batch()
    small, again = stage.submit(BOB, ["0", "1"]), stage.submit(ALICE, texts[:20])
    urgent = stage.next_batch()
    assert stage.sent[1] == ["0", "1"]
    assert stage.complete(urgent) == [small]
    assert again in stage.complete(batch), "large requests follow each other"
    assert stage.finish() == [large]


def test_texts_that_wait_together_are_sent_once() -> None:
    stage = Stage()
    jobs = [stage.submit(who, ["a"]) for who in (ALICE, BOB)]
    assert stage.finish() == jobs
    assert stage.sent == [["a"]]


@pytest.mark.parametrize(
    "options",
    [{"normalize": True}, {"truncate": "left"}, {"prompt": "query: "}, {"pooling_layer": -2}, {"pairs": False}],
)
def test_with_other_options_a_text_is_another_one(options: dict[str, object]) -> None:
    stage = Stage(cache_bytes=1 << 20)
    stage.submit(ALICE, ["a"])
    stage.submit(BOB, ["a"], **options)
    stage.finish()
    stage.submit(BOB, ["a"], **{**options, "show_usage": True})  # changes no vector
    stage.finish()
    assert stage.sent == [["a", "a"]]


@pytest.mark.parametrize(
    ("poolings", "options"),
    [
        (["REDUCE_MEAN"], {"pooling_strategy": "NONE"}),
        (["REDUCE_MEAN"], {"pooling_strategy": "SPLADE"}),
        (["REDUCE_MEAN"], {"show_tokens": True}),
        (["REDUCE_MEAN"], {"show_offsets": True}),
        (["NONE"], {}),
    ],
)
def test_tokens_and_their_vectors_are_not_shared(poolings: list[str], options: dict[str, object]) -> None:
    stage = Stage(cache_bytes=1 << 20, poolings=poolings)
    for _ in range(2):
        stage.submit(ALICE, ["a", "a"], **options)
        stage.submit(BOB, ["a"], **options)
        stage.finish()
    assert stage.sent == [["a"] * 3] * 2
    assert len(stage.repeats.cache) == 0


def test_texts_that_were_sent_as_tokens_are_not_shared_and_pairs_are() -> None:
    stage = Stage()
    pair, same = ({"text": "a", "text_pair": "b"} for _ in range(2))
    stage.submit(ALICE, [["a"], ["a"]])
    stage.submit(BOB, [pair, {"text": "b", "text_pair": "a"}, same])
    stage.finish()
    assert sorted(map(str, stage.sent[0])) == sorted(
        map(str, [["a"], ["a"], pair, {"text": "b", "text_pair": "a"}])
    )


def test_a_follower_gets_its_vectors_even_if_the_first_request_is_cancelled() -> None:
    stage = Stage()
    first = stage.submit(ALICE, ["a"])
    batch = stage.next_batch()
    second = stage.submit(BOB, ["a"])
    stage.scheduler.cancel_request(ALICE, first.request.request_id)
    assert stage.complete(batch) == [second]
    assert stage.sent == [["a"]]


def test_a_follower_is_computed_if_the_batch_was_lost_and_the_first_request_is_cancelled() -> None:
    stage = Stage()
    first = stage.submit(ALICE, ["a"])
    stage.next_batch()
    second, third = stage.submit(BOB, ["a"]), stage.submit(BOB, ["a"])
    stage.scheduler.worker_lost("w0")
    stage.scheduler.cancel_request(ALICE, first.request.request_id)
    stage.start("w0", "A")
    assert stage.finish() == [second, third]
    assert stage.sent == [["a"], ["a"]]
    assert rows_of(second) == rows_of(third)


def test_a_follower_that_is_cancelled_leaves_the_others() -> None:
    stage = Stage()
    first = stage.submit(ALICE, ["a"])
    batch = stage.next_batch()
    second, third = stage.submit(BOB, ["a"]), stage.submit(BOB, ["a"])
    stage.scheduler.cancel_request(BOB, second.request.request_id)
    assert stage.complete(batch) == [first, third]
    assert stage.scheduler.admission.texts.held == 0


def test_an_error_is_not_shared() -> None:
    stage = Stage(cache_bytes=1 << 20)
    first = stage.submit(ALICE, ["a"])
    batch = stage.next_batch()
    second, third = stage.submit(BOB, ["a"]), stage.submit(BOB, ["a"])
    rejected = Result(batch.batch_id, [Rejected(InvalidRequest("no"), 0)])
    (failure,) = stage.scheduler.complete("w0", rejected, 0.0)
    assert isinstance(failure, Failure)
    assert failure.job is first
    batch = stage.next_batch()
    (failure,) = stage.scheduler.fail("w0", batch.batch_id, "an exception")
    assert failure.job is second
    assert stage.finish() == [third]
    assert stage.sent == [["a"]] * 3


def test_a_text_that_got_null_is_computed_again() -> None:
    stage = Stage(cache_bytes=1 << 20)
    stage.submit(ALICE, ["a", "b"], on_error="null")
    batch = stage.next_batch()
    second = stage.submit(BOB, ["b", "a"])
    error = {"index": 1, "code": "invalid_request", "message": "no"}
    vectors = Vectors(np.array([[7.0], [np.nan]], np.float32), [3, 0], errors=[error])  # type: ignore[list-item]
    stage.scheduler.complete("w0", Result(batch.batch_id, [vectors]), 0.0)
    assert stage.finish() == [second]
    assert stage.sent == [["a", "b"], ["b"]]
    assert rows_of(second)[1] == 7.0


def test_of_a_thousand_equal_texts_one_is_computed() -> None:
    stage = Stage()
    job = stage.submit(ALICE, ["a"] * 1000)
    assert stage.finish() == [job]
    assert stage.sent == [["a"]]
    assert len(set(rows_of(job))) == 1


def test_only_so_many_slices_follow_one_text() -> None:
    stage = Stage()
    job = stage.submit(ALICE, ["a", "b"] * 500)
    assert stage.finish() == [job]
    assert stage.repeats.in_flight.num_shared == 1000 - sum(map(len, stage.sent)) > 64
    assert min(rows_of(job)) > 0


def test_vectors_are_found_in_the_cache_bit_for_bit() -> None:
    stage = Stage(cache_bytes=1 << 20)
    first = stage.submit(ALICE, ["a", "b", "c", "d"])
    stage.finish()
    second = stage.submit(BOB, ["d", "a", "b"])
    assert second.is_done
    assert stage.scheduler.is_idle
    assert rows_of(second) == [rows_of(first)[i] for i in (3, 0, 1)]
    assert second.result.truncated == [0]
    third = stage.submit(BOB, ["x", "b", "y", "c", "d"])
    assert stage.finish() == [third]
    assert stage.sent == [["a", "b", "c", "d"], ["x", "y"]]
    assert rows_of(third)[1] == rows_of(first)[1]
    assert rows_of(third)[3:] == rows_of(first)[2:]
    assert (stage.repeats.cache.num_hits, stage.repeats.cache.num_misses) == (6, 6)


def test_a_new_model_empties_the_cache_and_the_same_one_does_not() -> None:
    stage = Stage(cache_bytes=1 << 20)
    stage.submit(ALICE, ["a"])
    stage.finish()
    stage.start("w0", "A")
    assert stage.submit(ALICE, ["a"]).is_done
    stage.start("w0", "B")
    job = stage.submit(ALICE, ["a"])
    assert stage.finish() == [job]
    assert job.result.model == "B"


def test_vectors_of_an_older_model_do_not_get_into_the_cache() -> None:
    stage = Stage(cache_bytes=1 << 20)
    stage.submit(ALICE, ["a"])
    batch = stage.next_batch()
    stage.start("w1", "B")
    stage.complete(batch)
    assert len(stage.repeats.cache) == 0


def test_a_job_with_cached_vectors_of_another_model_is_computed_again_as_a_whole() -> None:
    stage = Stage(cache_bytes=1 << 20)
    stage.submit(ALICE, ["a"])
    stage.finish()
    job = stage.submit(ALICE, ["a", "b"])
    stage.start("w0", "B")
    assert stage.finish() == [job]
    assert stage.sent == [["a"], ["b"], ["a", "b"]] or stage.sent == [["a"], ["b"], ["a"], ["b"]]
    assert job.result.model == "B"


def test_the_cache_holds_only_so_many_bytes_and_drops_what_was_not_used() -> None:
    cache, kind = VectorCache(50_000), kind_of(EncodeOptions())
    rows = np.zeros((1, 100), np.float32)
    for i in range(1000):
        cache.add(kind, [f"text {i}"], Vectors(rows, [3]))
        assert cache.find(kind, ["text 0"])
        assert cache.num_bytes <= 50_000
    assert 40 <= len(cache) <= 60
    assert cache.find(kind, ["text 999"])
    assert not cache.find(kind, ["text 1"])
    cache.add(kind, ["x" * 100_000], Vectors(rows, [3]))
    assert not cache.find(kind, ["x" * 100_000])
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_a_stored_row_does_not_keep_the_rows_beside_it_alive() -> None:
    cache, kind = VectorCache(1 << 20), kind_of(EncodeOptions())
    cache.add(kind, ["a", "b"], Vectors(np.zeros((2, 8), np.float32), [3, 3]))
    assert cache._entries[keys_of(kind, ["a"])[0]].row.base is None  # type: ignore[index]
