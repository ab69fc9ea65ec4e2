"""The scheduler's rules, one by one, and properties that it must have in every sequence of events.

The scheduler estimates that a text of 4 * (n - 2) characters has n tokens, and the worker of these tests reports
the same number. Most texts have 16 tokens. For a worker that computes 20,000 tokens/s, a full batch has 1,600
tokens: 100 texts of 16 tokens.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bert_serving.protocol import (
    DeadlineExceeded,
    EncodeOptions,
    EncodeRequest,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    Text,
    TextPair,
    Unavailable,
    WorkerFailed,
)
from bert_serving.protocol.workers import Batch, ModelFacts, Rejected, Result, Vectors
from bert_serving.server.broker.job import Job
from bert_serving.server.broker.loop_clock import LoopClock
from bert_serving.server.broker.repeats import Repeats
from bert_serving.server.broker.scheduler import Failure, Scheduler
from bert_serving.server.broker.sizes import ResultSizes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.model_facts import model_facts

ALICE, BOB, CAROL = b"alice-0123456789", b"bob-0123456789ab", b"carol-0123456789"
FULL_BATCH = 100  # number of texts of 16 tokens in a full batch
SMALL = 16  # number of texts in the largest request that may overtake others

_unique = itertools.count(1)


def make_texts(count: int, num_tokens: int = 16) -> list[str]:
    """Return this number of texts. Each has num_tokens tokens and begins with a unique number."""
    return [f"{next(_unique)} ".ljust(4 * (num_tokens - 2), "x") for _ in range(count)]


def number_of(text: Text) -> float:
    """Return the number that a text begins with. The tests use it as the text's vector."""
    return float(str(text).split(maxsplit=1)[0])


def make_scheduler(
    *, workers: int = 1, tokens_per_s: float = 20_000, max_batch_tokens: int = 16_384, **options: Any
) -> Scheduler:
    defaults = {
        "queue_capacity": 100_000,
        "memory_bytes": 1 << 30,
        "flow_share": 1.0,
        "sizes": ResultSizes(max_seq_len=512),
        "max_batch_size": 10_000,
        "priority_batch_size": SMALL,
        "max_seq_len": 512,
    }
    scheduler = Scheduler(**{**defaults, **options})
    for i in range(workers):
        scheduler.worker_ready(f"w{i}", facts(tokens_per_s, max_batch_tokens))
    return scheduler


def facts(tokens_per_s: float = 20_000, max_batch_tokens: int = 16_384, model: str = "A") -> ModelFacts:
    return model_facts(tokens_per_s=tokens_per_s, max_batch_tokens=max_batch_tokens, fingerprint=model)


def request(client: bytes, texts: list[str], **options: Any) -> EncodeRequest:
    return EncodeRequest(client, b"1", texts, **options)


def submit(
    scheduler: Scheduler,
    client: bytes,
    count: int,
    now: float = 0.0,
    *,
    is_unsubscribed: bool = False,
    **options: Any,
) -> Job:
    return scheduler.submit(request(client, make_texts(count), **options), now, is_unsubscribed=is_unsubscribed)


def submit_unsubscribed(scheduler: Scheduler, num_clients: int) -> list[Job]:
    return [submit(scheduler, b"unsubscribed %d" % i, 1, is_unsubscribed=True) for i in range(num_clients)]


def tokens_of(text: Text) -> int:
    return min(len(str(text)) // 4 + 2, 512)


def computed(batch: Batch, *, tokens_per_s: float = 20_000, factor: int = 1) -> Result:
    """Return the result of a worker with this speed. factor: real tokens for each estimated token."""
    part_results = [vectors(part.texts, [factor * tokens_of(text) for text in part.texts]) for part in batch.parts]
    num_tokens = sum(sum(each.num_tokens) for each in part_results)
    return Result(batch.batch_id, part_results, compute_ms=1000 * num_tokens / tokens_per_s)


def vectors(texts: Sequence[Text], num_tokens: Sequence[int], **more: Any) -> Vectors:
    return Vectors(np.array([[number_of(text)] for text in texts], np.float64), num_tokens, **more)


def computed_by(model: str, batch: Batch) -> Result:
    """Return the result of a worker with this model. A row holds the number of its text and one of the model."""
    part_results = [
        Vectors(
            np.array([[number_of(text), ord(model)] for text in part.texts], np.float64),
            [tokens_of(text) for text in part.texts],
        )
        for part in batch.parts
    ]
    return Result(batch.batch_id, part_results, compute_ms=1.0)


def next_batch(scheduler: Scheduler, name: str = "w0", now: float = 0.0) -> Batch:
    batch = scheduler.next_batch(name, now)
    assert batch is not None
    return batch


def turn(scheduler: Scheduler, name: str = "w0", **speed: Any) -> Batch:
    """Let the worker compute one batch."""
    batch = next_batch(scheduler, name)
    scheduler.complete(name, computed(batch, **speed), 0.0)
    return batch


def run_all(scheduler: Scheduler, name: str = "w0") -> list[Job]:
    """Let one worker compute everything; return the jobs in the order in which they end."""
    done: list[Job] = []
    while (batch := scheduler.next_batch(name, 0.0)) is not None:
        done += scheduler.complete(name, computed(batch), 0.0)
    return done


def texts_of(batch: Batch) -> list[Text]:
    return [text for part in batch.parts for text in part.texts]


def share_of(job: Job, batch: Batch) -> int:
    return len(set(job.texts) & set(texts_of(batch)))


# -- batches from several requests ---------------------------------------------------------------------


def test_idle_server_sends_a_single_text_at_once() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 1)
    assert texts_of(next_batch(scheduler)) == job.texts


def test_requests_of_different_clients_merge_into_one_batch() -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, client, 2) for client in (ALICE, BOB, CAROL)]
    batch = next_batch(scheduler)
    assert [share_of(job, batch) for job in jobs] == [2, 2, 2]


def test_merged_rows_go_back_to_their_own_request() -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, client, 3) for client in (ALICE, BOB, ALICE)]
    assert run_all(scheduler) == jobs
    for job in jobs:
        assert job.result.rows is not None
        assert job.result.rows[:, 0].tolist() == [number_of(text) for text in job.texts]


def test_empty_queue_gives_no_batch() -> None:
    assert make_scheduler().next_batch("w0", 0.0) is None


def test_worker_that_is_not_ready_gets_no_batch() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1)
    assert scheduler.next_batch("w7", 0.0) is None


def test_texts_wait_for_the_first_worker() -> None:
    scheduler = make_scheduler(workers=0)
    job = submit(scheduler, ALICE, 1)
    scheduler.worker_ready("w0", facts())
    assert run_all(scheduler) == [job]


def test_requests_with_different_options_share_a_batch() -> None:
    scheduler = make_scheduler()
    with_tokens = EncodeOptions(show_tokens=True, pooling_strategy=("CLS_TOKEN",))
    submit(scheduler, ALICE, 1)
    submit(scheduler, BOB, 1, options=with_tokens)
    assert [part.options for part in next_batch(scheduler).parts] == [EncodeOptions(), with_tokens]


def test_server_that_shows_tokens_requests_them_for_every_text() -> None:
    scheduler = make_scheduler(show_tokens=True)
    submit(scheduler, ALICE, 1)
    assert next_batch(scheduler).parts[0].options.show_tokens


def test_spans_are_sent_with_their_texts() -> None:
    scheduler = make_scheduler(max_batch_size=2)
    submit(scheduler, ALICE, 3, spans=[[[0, 1]], [[0, 2]], [[0, 3]]])
    assert [turn(scheduler).parts[0].spans for _ in range(2)] == [[[[0, 1]], [[0, 2]]], [[[0, 3]]]]


def test_token_vectors_are_grouped_by_text() -> None:
    scheduler = make_scheduler(max_batch_size=2)
    job = submit(scheduler, ALICE, 3)
    for rows, counts in (([[1.0], [2.0], [3.0]], [1, 2]), ([[4.0]], [1])):
        part = Vectors(np.array(rows, np.float32), [16] * len(counts), counts=counts)
        scheduler.complete("w0", Result(next_batch(scheduler).batch_id, [part]), 0.0)
    assert [of_text.tolist() for of_text in job.result.ragged or []] == [[[1.0]], [[2.0], [3.0]], [[4.0]]]
    assert job.result.padded(None)[:, :, 0].tolist() == [[1.0, 0.0], [2.0, 3.0], [4.0, 0.0]]
    assert job.result.padded(4).shape == (3, 4, 1)
    assert job.result.joined()[1] == [1, 2, 1]


def test_a_rejected_text_fails_only_its_request_and_is_named_by_its_index_there() -> None:
    scheduler = make_scheduler(max_batch_size=2)
    bad, good = submit(scheduler, ALICE, 3), submit(scheduler, BOB, 1)
    scheduler.complete("w0", computed(next_batch(scheduler)), 0.0)
    batch = next_batch(scheduler)
    part_results = [
        Rejected(InvalidRequest("too long"), 0) if part.texts[0] in bad.texts else vectors(part.texts, [16])
        for part in batch.parts
    ]
    ended = scheduler.complete("w0", Result(batch.batch_id, part_results), 0.0)
    failures = [e for e in ended if isinstance(e, Failure)]
    assert [(f.job, type(f.error), str(f.error)) for f in failures] == [
        (bad, InvalidRequest, "texts[2]: too long")
    ]
    assert good in ended or run_all(scheduler) == [good]


def test_a_request_whose_vectors_cannot_fit_is_refused() -> None:
    scheduler = make_scheduler(memory_bytes=1 << 20, flow_share=0.5)
    with pytest.raises(PayloadTooLarge, match="more memory than one client may use"):
        submit(scheduler, ALICE, 400)  # 600 KiB of vectors with 384 components
    assert scheduler.admission.memory.held == 0


def test_vectors_that_are_larger_than_expected_fail_their_request() -> None:
    scheduler = make_scheduler(memory_bytes=1 << 20, max_batch_size=2)
    submit(scheduler, ALICE, 4)
    batch = next_batch(scheduler)
    wide = Vectors(np.zeros((2, 100_000), np.float32), [16, 16])  # after one batch it is clear that 4 are too many
    (failure,) = scheduler.complete("w0", Result(batch.batch_id, [wide]), 0.0)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, PayloadTooLarge)
    fits = submit(scheduler, BOB, 2)
    assert run_all(scheduler) == [fits]


def test_token_vectors_are_limited_as_they_arrive() -> None:
    scheduler = make_scheduler(memory_bytes=1 << 20, max_batch_size=1)
    submit(scheduler, ALICE, 2)
    ends = []
    for _ in range(2):
        part = Vectors(np.zeros((150, 1000), np.float32), [16], counts=[150])
        ends.append(scheduler.complete("w0", Result(next_batch(scheduler).batch_id, [part]), 0.0))
    assert ends[0] == []
    assert isinstance(ends[1][0], Failure)
    assert scheduler.admission.memory.held == 0


def test_a_long_text_that_is_not_truncated_gets_more_time() -> None:
    clock = LoopClock()
    scheduler = make_scheduler(tokens_per_s=1000, max_batch_tokens=1000, clock=clock)
    texts = make_texts(1, num_tokens=100_000)
    scheduler.submit(request(ALICE, texts, options=EncodeOptions(long_text="chunk")), 0.0)
    next_batch(scheduler)
    clock.now = 519.0
    assert scheduler.overdue(120.0) == []  # limit: 120 s + 100,000 tokens / 250 tokens/s
    clock.now = 521.0
    assert scheduler.overdue(120.0) == ["w0"]


def test_usage_holds_the_tokens_and_times_of_a_request() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, FULL_BATCH + 20, now=1.0)
    assert scheduler.oldest_age_s(1.5) == 0.5
    first = next_batch(scheduler, now=3.0)
    assert scheduler.oldest_age_s(9.0) == 0.0
    scheduler.complete("w0", replace(computed(first), tokenize_ms=2.0, compute_ms=10.0), 4.0)
    rest = next_batch(scheduler, now=4.0)
    scheduler.complete("w0", replace(computed(rest), tokenize_ms=1.0, compute_ms=5.0), 5.0)
    usage = job.usage(5.0)
    assert usage.num_tokens == [16] * (FULL_BATCH + 20)
    assert (usage.total_ms, usage.queue_ms, usage.tokenize_ms, usage.compute_ms) == (4000, 2000, 3, 15)


def test_pairs_and_token_ids_count_by_their_size() -> None:
    scheduler = make_scheduler()
    pairs: Sequence[Text] = [TextPair(text="x" * 28, text_pair="x" * 28)] * FULL_BATCH * 2
    ids: Sequence[Text] = [[7] * 14] * FULL_BATCH * 2
    for texts in (pairs, ids):
        scheduler.submit(EncodeRequest(ALICE, b"1", texts), 0.0)
        assert len(texts_of(next_batch(scheduler))) == FULL_BATCH
        list(scheduler.cancel(ALICE))
        scheduler.worker_ready("w0", facts())


def test_truncated_rows_are_indices_into_their_own_request() -> None:
    scheduler = make_scheduler()
    first, second = submit(scheduler, ALICE, 2), submit(scheduler, BOB, 3)
    batch = next_batch(scheduler)
    cut = {first.texts[0], second.texts[2]}
    part_results = [
        vectors(p.texts, [16] * len(p.texts), truncated=[i for i, text in enumerate(p.texts) if text in cut])
        for p in batch.parts
    ]
    scheduler.complete("w0", Result(batch.batch_id, part_results), 0.0)
    assert (first.result.truncated, second.result.truncated) == ([0], [2])


def test_a_text_that_is_not_truncated_counts_all_its_tokens() -> None:
    scheduler = make_scheduler(max_seq_len=100)
    texts = make_texts(1, num_tokens=2000)
    cut = scheduler.submit(request(ALICE, texts), 0.0)
    whole = scheduler.submit(request(BOB, texts, options=EncodeOptions(long_text="chunk")), 0.0)
    estimate = [job.tokens_of(texts[0], scheduler._estimate.of_text) for job in (cut, whole)]
    assert estimate == [100, 2000]


# -- size of a batch -----------------------------------------------------------------------------------


def test_full_batch_is_what_the_worker_computes_in_80_ms() -> None:
    scheduler = make_scheduler(tokens_per_s=20_000)
    submit(scheduler, ALICE, 500)
    assert len(texts_of(next_batch(scheduler))) == FULL_BATCH


def test_batch_is_limited_by_the_workers_tokens() -> None:
    scheduler = make_scheduler(tokens_per_s=1e9, max_batch_tokens=512)
    submit(scheduler, ALICE, 500)
    assert len(texts_of(next_batch(scheduler))) == 512 // 16


def test_the_workers_token_limit_may_be_below_the_smallest_batch() -> None:
    scheduler = make_scheduler(max_batch_tokens=64)
    submit(scheduler, ALICE, 100)
    assert len(texts_of(next_batch(scheduler))) == 64 // 16


def test_slow_worker_still_gets_batches_of_256_tokens() -> None:
    scheduler = make_scheduler(tokens_per_s=100)
    submit(scheduler, ALICE, 100)
    assert len(texts_of(next_batch(scheduler))) == 256 // 16


def test_batch_is_limited_by_max_batch_size() -> None:
    scheduler = make_scheduler(max_batch_size=7)
    submit(scheduler, ALICE, 500)
    assert len(texts_of(next_batch(scheduler))) == 7


def test_text_longer_than_a_full_batch_is_a_batch_alone() -> None:
    scheduler = make_scheduler(max_batch_tokens=256)
    scheduler.submit(request(ALICE, [*make_texts(1, 400), *make_texts(1)]), 0.0)
    assert len(texts_of(next_batch(scheduler))) == 1


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(5, 512)), min_size=1, max_size=12),
    max_batch_tokens=st.integers(256, 2048),
)
def test_batch_of_several_texts_stays_within_the_tokens_of_its_worker(
    sizes: list[tuple[int, int]], max_batch_tokens: int
) -> None:
    scheduler = make_scheduler(tokens_per_s=1e9, max_batch_tokens=max_batch_tokens)
    for client, (count, num_tokens) in enumerate(sizes):
        scheduler.submit(request(b"%d" % client, make_texts(count, num_tokens)), 0.0)
    while (batch := scheduler.next_batch("w0", 0.0)) is not None:
        assert len(texts_of(batch)) == 1 or sum(map(tokens_of, texts_of(batch))) <= max_batch_tokens
        scheduler.complete("w0", computed(batch, tokens_per_s=1e9), 0.0)


def test_batches_grow_with_the_measured_rate() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 10_000)
    sizes = [len(texts_of(turn(scheduler, tokens_per_s=40_000))) for _ in range(20)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(2 * FULL_BATCH, rel=0.05)


def test_batches_never_shrink_below_a_quarter_of_the_rate_at_warm_up() -> None:
    scheduler = make_scheduler(tokens_per_s=80_000)
    submit(scheduler, ALICE, 20_000)
    sizes = [len(texts_of(turn(scheduler, tokens_per_s=1_000))) for _ in range(40)]
    assert sizes[-1] == 4 * FULL_BATCH // 4


def test_slow_small_batches_do_not_lower_the_rate() -> None:
    scheduler = make_scheduler()
    for _ in range(20):
        submit(scheduler, ALICE, 1)
        turn(scheduler, tokens_per_s=500)
    assert scheduler.tokens_per_s == 20_000


def test_rate_is_the_sum_over_all_workers() -> None:
    assert make_scheduler(workers=3).tokens_per_s == 60_000


def test_token_estimate_follows_the_counts_of_workers() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 10_000)
    sizes = [len(texts_of(turn(scheduler, factor=2))) for _ in range(30)]
    assert sizes[-1] == pytest.approx(FULL_BATCH / 2, rel=0.1)


def test_tokenized_texts_cost_their_tokens() -> None:
    scheduler = make_scheduler(tokens_per_s=1e9, max_batch_tokens=320)
    scheduler.submit(EncodeRequest(ALICE, b"1", [["token"] * 14] * 50), 0.0)
    assert len(texts_of(next_batch(scheduler))) == 320 // 16


def test_long_text_costs_no_more_than_max_seq_len() -> None:
    scheduler = make_scheduler(max_seq_len=32, tokens_per_s=1e9, max_batch_tokens=320)
    scheduler.submit(request(ALICE, make_texts(50, 1000)), 0.0)
    assert len(texts_of(next_batch(scheduler))) == 10


# -- the batch ahead: a worker's second batch, which waits while the worker computes the first ----------


def test_batch_ahead_waits_while_it_has_fewer_tokens_than_the_first_batch() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 10)
    next_batch(scheduler)
    submit(scheduler, BOB, 9)
    assert scheduler.next_batch("w0", 0.0) is None


def test_batch_ahead_is_sent_when_it_has_as_many_tokens_as_the_first_batch() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 10)
    next_batch(scheduler)
    job = submit(scheduler, BOB, 10)
    assert texts_of(next_batch(scheduler)) == job.texts


def test_batch_ahead_is_sent_when_it_is_half_full() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, FULL_BATCH)
    next_batch(scheduler)
    job = submit(scheduler, BOB, FULL_BATCH // 2)
    assert texts_of(next_batch(scheduler)) == job.texts


def test_batch_ahead_grows_until_the_first_batch_is_done() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 10)
    first = next_batch(scheduler)
    for client in (ALICE, BOB, CAROL):
        submit(scheduler, client, 1)
        assert scheduler.next_batch("w0", 0.0) is None
    scheduler.complete("w0", computed(first), 0.0)
    assert len(texts_of(next_batch(scheduler))) == 3


def test_worker_holds_two_batches_at_most() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1000)
    assert [scheduler.next_batch("w0", 0.0) is not None for _ in range(3)] == [True, True, False]


def submit_long(scheduler: Scheduler, client: bytes, num_tokens: int = 131_072) -> Job:
    options = EncodeOptions(long_text="chunk")
    return scheduler.submit(request(client, make_texts(1, num_tokens), options=options), 0.0)


def test_long_batch_does_not_delay_the_batches_after_it() -> None:
    scheduler = make_scheduler()
    submit_long(scheduler, ALICE)
    next_batch(scheduler)
    for count in (1, SMALL):
        job = submit(scheduler, BOB, count)
        assert texts_of(next_batch(scheduler)) == job.texts
    submit(scheduler, CAROL, 1)
    assert scheduler.next_batch("w0", 0.0) is None  # the worker has two batches that are not long


def test_short_text_overtakes_the_long_texts_of_several_clients() -> None:
    scheduler = make_scheduler()
    for client in (b"client-1", b"client-2", b"client-3", b"client-4"):
        submit_long(scheduler, client)
    job = submit(scheduler, BOB, 1)
    batches = [next_batch(scheduler) for _ in range(3)]
    assert scheduler.next_batch("w0", 0.0) is None
    assert sum(share_of(job, batch) for batch in batches) == 1
    long = next(batch for batch in batches if not share_of(job, batch))
    scheduler.complete("w0", computed(long), 0.0)
    assert len(texts_of(next_batch(scheduler))) == 1  # the third long text


def test_batch_of_two_full_batches_is_not_long() -> None:
    scheduler = make_scheduler()
    submit_long(scheduler, ALICE, 2 * 16 * FULL_BATCH)
    next_batch(scheduler)
    submit(scheduler, BOB, 1)
    assert scheduler.next_batch("w0", 0.0) is None


def test_each_worker_gets_a_first_batch_before_any_worker_gets_a_second() -> None:
    scheduler = make_scheduler(workers=3)
    submit(scheduler, ALICE, 1000)
    names = [name for name, _ in scheduler.next_batches(0.0)]
    assert sorted(names[:3]) == sorted(names[3:]) == ["w0", "w1", "w2"]


def test_job_is_spread_over_the_workers_and_its_rows_are_in_order() -> None:
    scheduler = make_scheduler(workers=3)
    job = submit(scheduler, ALICE, 550)
    batches = list(scheduler.next_batches(0.0))
    for name, batch in reversed(batches):
        done = scheduler.complete(name, computed(batch), 0.0)
    assert done == [job]
    assert job.result.rows is not None
    assert job.result.rows[:, 0].tolist() == [number_of(text) for text in job.texts]


# -- order and fair shares -----------------------------------------------------------------------------


def test_small_request_overtakes_a_large_one() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1000)
    small = submit(scheduler, BOB, SMALL)
    assert share_of(small, next_batch(scheduler)) == SMALL


def test_large_request_keeps_a_quarter_of_every_batch() -> None:
    scheduler = make_scheduler()
    large = submit(scheduler, ALICE, 200)
    for _ in range(60):
        submit(scheduler, BOB, SMALL)
    assert [share_of(large, turn(scheduler)) for _ in range(8)] == [25] * 8


def test_large_request_keeps_its_share_of_batches_that_are_limited_by_texts() -> None:
    scheduler = make_scheduler(tokens_per_s=1e6, max_batch_size=64)
    large = submit(scheduler, ALICE, 200)
    for _ in range(60):
        submit(scheduler, BOB, SMALL)
    shares = [share_of(large, turn(scheduler, tokens_per_s=1e6)) for _ in range(8)]
    assert sum(shares) >= 0.2 * 8 * 64


def test_large_request_keeps_its_share_if_small_ones_have_long_texts() -> None:
    scheduler = make_scheduler(max_batch_tokens=256)
    large = submit(scheduler, ALICE, 200)
    for _ in range(60):
        scheduler.submit(request(BOB, make_texts(1, 300)), 0.0)
    shares = [share_of(large, turn(scheduler)) for _ in range(40)]
    assert sum(shares) > 0


def test_small_requests_fill_the_batch_when_no_large_one_waits() -> None:
    scheduler = make_scheduler()
    for _ in range(20):
        submit(scheduler, BOB, SMALL)
    assert len(texts_of(next_batch(scheduler))) == FULL_BATCH


def test_a_small_request_does_not_wait_until_a_worker_has_computed_its_large_ones() -> None:
    scheduler = make_scheduler(workers=2)
    submit(scheduler, ALICE, 20_000)
    assert len(list(scheduler.next_batches(0.0))) == 4  # each worker has two, and cannot take another large one
    single = submit(scheduler, BOB, 1)
    ((_, batch),) = scheduler.next_batches(0.0)
    assert texts_of(batch) == single.texts


def test_small_requests_go_in_one_batch_of_their_own_at_a_time_beside_large_ones() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 20_000)
    large = [next_batch(scheduler), next_batch(scheduler)]
    first = submit(scheduler, BOB, 1)
    urgent = next_batch(scheduler)
    assert texts_of(urgent) == first.texts
    others = [submit(scheduler, client, 1) for client in (BOB, CAROL)]
    assert scheduler.next_batch("w0", 0.0) is None
    scheduler.complete("w0", computed(large[0]), 0.0)
    # The next large batch has no small ones, because these come sooner in a batch of their own.
    assert not {job.texts[0] for job in others} & set(texts_of(next_batch(scheduler)))
    scheduler.complete("w0", computed(urgent), 0.0)
    assert texts_of(next_batch(scheduler)) == [job.texts[0] for job in others]


@pytest.mark.parametrize("num_tokens", [200, 300, 512])
def test_a_long_text_of_a_small_request_does_not_wait_for_all_of_a_bulk_job(num_tokens: int) -> None:
    scheduler = make_scheduler(tokens_per_s=3000)  # a full batch has 256 tokens
    submit(scheduler, ALICE, 2000)
    next_batch(scheduler)
    long = scheduler.submit(request(BOB, make_texts(1, num_tokens)), 0.0)
    short = submit(scheduler, BOB, 3)
    for _ in range(12):
        for name, batch in list(scheduler.next_batches(0.0)):
            scheduler.complete(name, computed(batch, tokens_per_s=3000), 0.0)
    assert long.is_done
    assert short.is_done


def test_many_small_requests_keep_most_of_a_worker_beside_large_ones() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 20_000)
    in_flight = [next_batch(scheduler), next_batch(scheduler)]
    small = large = 0
    for _ in range(40):
        while scheduler.num_waiting < 20_000:
            submit(scheduler, BOB, SMALL)
        in_flight += [batch for _, batch in scheduler.next_batches(0.0)]
        batch = in_flight.pop(0)
        count = sum(len(part.texts) for part in batch.parts if len(part.texts) <= SMALL)
        small, large = small + count, large + len(texts_of(batch)) - count
        scheduler.complete("w0", computed(batch), 0.0)
    assert small > large


def test_without_large_requests_small_ones_wait_for_a_full_enough_batch() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, SMALL)
    next_batch(scheduler)
    submit(scheduler, BOB, 1)
    assert scheduler.next_batch("w0", 0.0) is None


def test_no_urgent_batch_keeps_a_suspect_from_a_worker() -> None:
    scheduler = make_scheduler(workers=2)
    submit(scheduler, ALICE, 20_000)
    assert len(list(scheduler.next_batches(0.0))) == 4
    scheduler.worker_lost("w1")
    submit(scheduler, BOB, 1)
    assert scheduler.next_batch("w0", 0.0) is None  # it computes what it has, and then a suspect alone


def test_large_requests_share_by_tokens_not_by_texts() -> None:
    scheduler = make_scheduler()
    short, long = submit(scheduler, ALICE, 2000), make_texts(2000, 64)
    scheduler.submit(request(BOB, long), 0.0)
    batches = [turn(scheduler) for _ in range(20)]
    alice = sum(share_of(short, batch) for batch in batches) * 16
    bob = sum(len(set(long) & set(texts_of(batch))) for batch in batches) * 64
    assert alice == pytest.approx(bob, abs=400)


def test_client_with_many_requests_does_not_delay_another() -> None:
    scheduler = make_scheduler()
    for _ in range(500):
        submit(scheduler, ALICE, SMALL)
    single = submit(scheduler, BOB, 1)
    next_batch(scheduler)
    assert share_of(single, next_batch(scheduler)) == 1 or single.num_waiting == 0


def test_requests_of_one_client_are_served_in_their_order() -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, ALICE, SMALL) for _ in range(30)]
    assert run_all(scheduler) == jobs


def test_all_unsubscribed_clients_together_have_the_share_of_one_client() -> None:
    scheduler = make_scheduler()
    submit_unsubscribed(scheduler, 1000)
    mine = [submit(scheduler, ALICE, 1) for _ in range(100)]
    served = sum(share_of(job, batch) for batch in (turn(scheduler), turn(scheduler)) for job in mine)
    assert served >= 0.4 * 2 * FULL_BATCH


def test_flows_of_one_gateway_share_the_server_fairly() -> None:
    scheduler = make_scheduler()
    many = [submit(scheduler, ALICE, 16, flow="key:many", is_unsubscribed=i % 2 == 0) for i in range(20)]
    scheduler.client_subscribed(ALICE)
    few = submit(scheduler, ALICE, 16, flow="key:few")
    batch = next_batch(scheduler)
    assert share_of(few, batch) == 16
    assert sum(share_of(job, batch) for job in many) < 20 * 16


def test_no_identity_is_the_flow_of_a_gateway() -> None:
    scheduler = make_scheduler()
    named = submit(scheduler, ALICE, 1, flow="key:x")
    flows = {submit(scheduler, identity, 1).flow for identity in (b"key:x", b"gateway:key:x", ALICE)}
    assert len(flows | {named.flow}) == 4


def test_unsubscribed_clients_are_not_starved_by_a_client_that_always_comes_back() -> None:
    scheduler = make_scheduler()
    unsubscribed = submit(scheduler, b"unsubscribed", 1, is_unsubscribed=True)
    for _ in range(3):
        for _ in range(FULL_BATCH):
            submit(scheduler, ALICE, 1)
        turn(scheduler)
    assert unsubscribed.is_done


@pytest.mark.parametrize("count", [1, 50])
def test_client_that_subscribes_late_does_not_wait_behind_the_others(count: int) -> None:
    scheduler = make_scheduler()
    for i in range(1000):
        submit(scheduler, b"unsubscribed %d" % i, count, is_unsubscribed=True)
    late_subscriber = submit(scheduler, ALICE, count, is_unsubscribed=True)
    list(scheduler.client_subscribed(ALICE))
    assert share_of(late_subscriber, next_batch(scheduler)) == count


def test_subscription_moves_only_waiting_texts_to_the_clients_flow() -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, ALICE, count, is_unsubscribed=True) for count in (1, 150, 30)]
    first = next_batch(scheduler)
    list(scheduler.client_subscribed(ALICE))
    list(scheduler.client_subscribed(ALICE))
    list(scheduler.client_subscribed(BOB))
    done = scheduler.complete("w0", computed(first), 0.0) + run_all(scheduler)
    assert sorted(done, key=lambda job: job.job_id) == jobs
    assert scheduler.is_idle


# -- lost workers --------------------------------------------------------------------------------------


def test_batch_of_a_lost_worker_goes_to_the_front() -> None:
    scheduler = make_scheduler(workers=2)
    lost = submit(scheduler, ALICE, 3)
    next_batch(scheduler, "w0")
    submit(scheduler, BOB, 3)
    assert scheduler.worker_lost("w0") == []
    assert texts_of(next_batch(scheduler, "w1")) == lost.texts


def test_both_batches_of_a_lost_worker_return_in_their_order() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 300)
    lost = [texts_of(next_batch(scheduler)), texts_of(next_batch(scheduler))]
    scheduler.worker_lost("w0")
    scheduler.worker_ready("w0", facts())
    assert [texts_of(turn(scheduler)), texts_of(turn(scheduler))] == lost


def test_both_batches_of_a_lost_worker_are_sent_again_alone() -> None:
    """The worker computed them in turns, so it is not known which of them it died of."""
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 500)
    next_batch(scheduler), next_batch(scheduler)
    scheduler.worker_lost("w0")
    scheduler.worker_ready("w0", facts())
    for _ in range(2):
        suspect = next_batch(scheduler)
        assert scheduler.next_batch("w0", 0.0) is None
        scheduler.complete("w0", computed(suspect), 0.0)
    next_batch(scheduler)
    assert scheduler.next_batch("w0", 0.0) is not None


def test_deaths_with_two_batches_count_against_neither() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 300)
    next_batch(scheduler), next_batch(scheduler)
    for _ in range(3):  # the first death meets two batches; only the next two meet one batch alone
        assert scheduler.worker_lost("w0") == []
        scheduler.worker_ready("w0", facts())
        first = next_batch(scheduler)
    scheduler.complete("w0", computed(first), 0.0)
    assert run_all(scheduler) == [job]


def test_batch_that_waits_behind_a_deadly_one_is_not_blamed() -> None:
    scheduler = make_scheduler()
    deadly, innocent = (submit(scheduler, client, FULL_BATCH) for client in (ALICE, BOB))
    next_batch(scheduler), next_batch(scheduler)
    failures = scheduler.worker_lost("w0")
    scheduler.worker_ready("w0", facts())
    done, more = deadly_run(scheduler, set(map(str, deadly.texts)), kills=True)
    assert ([failure.job for failure in failures + more], done) == ([deadly], [innocent])


def test_batches_of_a_replaced_worker_return_without_suspicion() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 1)
    for _ in range(10):
        next_batch(scheduler)
        scheduler.worker_ready("w0", facts())  # the successor takes over
    submit(scheduler, BOB, 50)
    assert texts_of(next_batch(scheduler)) == job.texts
    assert scheduler.next_batch("w0", 0.0) is not None  # the batch is no suspect: it shares the worker


def test_batch_of_a_lost_worker_is_the_first_one_of_its_next_worker() -> None:
    """Otherwise a text that kills workers could wait behind other batches, which would become suspects instead."""
    scheduler = make_scheduler(workers=2)
    submit(scheduler, ALICE, 400)
    for name in ("w0", "w0", "w1"):
        next_batch(scheduler, name)
    scheduler.worker_ready("w0", facts())
    assert scheduler.next_batch("w1", 0.0) is None


def test_suspect_batch_is_not_sent_to_a_worker_that_has_another_batch() -> None:
    scheduler = make_scheduler(workers=2)
    submit(scheduler, ALICE, 200)
    next_batch(scheduler, "w0")
    next_batch(scheduler, "w1")
    scheduler.worker_lost("w0")
    assert scheduler.next_batch("w1", 0.0) is None


def test_no_batch_is_sent_to_a_worker_that_has_a_suspect_batch() -> None:
    scheduler = make_scheduler(workers=2)
    submit(scheduler, ALICE, 100)
    next_batch(scheduler, "w0")
    scheduler.worker_lost("w0")
    next_batch(scheduler, "w1")
    submit(scheduler, BOB, 1000)
    assert scheduler.next_batch("w1", 0.0) is None


def test_suspect_batch_is_not_merged_with_other_requests() -> None:
    scheduler = make_scheduler()
    lost = submit(scheduler, ALICE, 1)
    next_batch(scheduler)
    scheduler.worker_lost("w0")
    scheduler.worker_ready("w0", facts())
    submit(scheduler, BOB, 1)
    assert texts_of(next_batch(scheduler)) == lost.texts


def test_suspect_that_is_computed_completes_like_any_other() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 3)
    next_batch(scheduler)
    scheduler.worker_lost("w0")
    scheduler.worker_ready("w0", facts())
    assert run_all(scheduler) == [job]


def test_third_lost_worker_splits_the_suspect_batch() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 5)
    for _ in range(3):
        next_batch(scheduler)
        scheduler.worker_lost("w0")
        scheduler.worker_ready("w0", facts())
    assert [texts_of(turn(scheduler)), texts_of(turn(scheduler))] == [job.texts[:2], job.texts[2:]]


def test_single_text_that_loses_a_third_worker_fails_with_worker_failed() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 1)
    for _ in range(2):
        next_batch(scheduler)
        assert scheduler.worker_lost("w0") == []
        scheduler.worker_ready("w0", facts())
    next_batch(scheduler)
    (failure,) = scheduler.worker_lost("w0")
    assert (failure.job, type(failure.error)) == (job, WorkerFailed)


def deadly_run(scheduler: Scheduler, poison: set[str], *, kills: bool) -> tuple[list[Job], list[Failure]]:
    """Compute all texts. A batch with a text of `poison` kills the worker if `kills` is true, or else fails."""
    done: list[Job] = []
    failures: list[Failure] = []
    while (batch := scheduler.next_batch("w0", 0.0)) is not None:
        if not poison & set(texts_of(batch)):
            done += scheduler.complete("w0", computed(batch), 0.0)
        elif kills:
            failures += scheduler.worker_lost("w0")
            scheduler.worker_ready("w0", facts())
        else:
            failures += scheduler.fail("w0", batch.batch_id, "index out of range")
    return done, failures


@pytest.mark.parametrize("kills", [True, False], ids=["worker dies", "batch fails"])
def test_only_the_request_with_the_text_to_blame_fails(kills: bool) -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, client, count) for client, count in ((ALICE, 7), (BOB, 1), (CAROL, 90))]
    done, failures = deadly_run(scheduler, {str(jobs[0].texts[4])}, kills=kills)
    assert ([f.job for f in failures], {id(job) for job in done}) == ([jobs[0]], {id(jobs[1]), id(jobs[2])})


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    picks=st.sets(st.integers(0, 200), max_size=4),
    kills=st.booleans(),
)
def test_exactly_the_requests_with_texts_to_blame_fail(sizes: list[int], picks: set[int], kills: bool) -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, b"%d" % i, count) for i, count in enumerate(sizes)]
    texts = [text for job in jobs for text in job.texts]
    poison = {str(texts[i]) for i in picks if i < len(texts)}
    done, failures = deadly_run(scheduler, poison, kills=kills)
    to_blame = {job.job_id for job in jobs if poison & set(map(str, job.texts))}
    assert {f.job.job_id for f in failures} == to_blame
    assert {job.job_id for job in done} == {job.job_id for job in jobs} - to_blame


def test_failed_batch_is_split_at_once() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 4)
    assert scheduler.fail("w0", next_batch(scheduler).batch_id, "out of memory") == []
    assert [texts_of(turn(scheduler)), texts_of(turn(scheduler))] == [job.texts[:2], job.texts[2:]]


def test_failed_batch_of_one_text_fails_its_request_with_the_workers_message() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1)
    (failure,) = scheduler.fail("w0", next_batch(scheduler).batch_id, "index out of range")
    assert isinstance(failure.error, WorkerFailed)
    assert "index out of range" in failure.error.message


def test_half_of_a_failed_batch_is_tried_again_after_its_first_lost_worker() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 2)
    scheduler.fail("w0", next_batch(scheduler).batch_id, "out of memory")
    next_batch(scheduler)
    assert scheduler.worker_lost("w0") == []
    scheduler.worker_ready("w0", facts())
    assert run_all(scheduler) == [job]


def test_failure_of_a_batch_that_is_not_in_flight_is_ignored() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1)
    assert scheduler.fail("w0", 4711, "what?") == []


def test_loss_of_an_unknown_worker_changes_nothing() -> None:
    assert make_scheduler().worker_lost("w7") == []


def test_worker_that_is_ready_again_without_a_loss_keeps_no_batch() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 3)
    next_batch(scheduler)
    scheduler.worker_ready("w0", facts())
    assert run_all(scheduler) == [job]


# -- two models ----------------------------------------------------------------------------------------


def rows_of(job: Job) -> list[list[float]]:
    assert job.result.rows is not None
    rows: list[list[float]] = job.result.rows.tolist()
    return rows


def test_worker_with_an_older_model_gets_no_batch() -> None:
    scheduler = make_scheduler(workers=2)
    assert scheduler.outdated == []
    scheduler.worker_ready("w1", facts(model="B"))
    submit(scheduler, ALICE, 1)
    assert scheduler.outdated == ["w0"]
    assert [name for name, _ in scheduler.next_batches(0.0)] == ["w1"]
    scheduler.worker_ready("w0", facts(model="B"))
    assert scheduler.outdated == []


def test_job_with_vectors_of_an_older_model_is_computed_again() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 2 * FULL_BATCH)
    assert scheduler.complete("w0", computed_by("A", next_batch(scheduler)), 0.0) == []
    scheduler.worker_ready("w0", facts(model="B"))
    assert scheduler.complete("w0", computed_by("B", next_batch(scheduler)), 0.0) == []
    assert (job.num_waiting, job.num_done, scheduler.num_waiting) == (2 * FULL_BATCH, 0, 2 * FULL_BATCH)
    ended: list[Any] = []
    while not ended:
        ended += scheduler.complete("w0", computed_by("B", next_batch(scheduler)), 0.0)
    assert ended == [job]
    assert rows_of(job) == [[number_of(text), ord("B")] for text in job.texts]
    assert (job.usage(0.0).model, scheduler.is_idle, scheduler.num_waiting) == ("B", True, 0)


def test_result_of_an_earlier_attempt_is_ignored() -> None:
    scheduler = make_scheduler(workers=2)
    job = submit(scheduler, ALICE, 2 * FULL_BATCH + 1)
    old, late = next_batch(scheduler, "w0"), next_batch(scheduler, "w0")
    scheduler.complete("w0", computed_by("A", old), 0.0)
    scheduler.worker_ready("w1", facts(model="B"))
    scheduler.complete("w1", computed_by("B", next_batch(scheduler, "w1")), 0.0)  # starts the job again
    scheduler.complete("w0", computed_by("A", late), 0.0)
    assert job.num_done == 0
    ended: list[Any] = []
    while not ended:
        ended += scheduler.complete("w1", computed_by("B", next_batch(scheduler, "w1")), 0.0)
    assert rows_of(job) == [[number_of(text), ord("B")] for text in job.texts]


def test_job_that_fits_into_one_batch_keeps_the_vectors_of_an_older_model() -> None:
    scheduler = make_scheduler(workers=2)
    job = submit(scheduler, ALICE, 3)
    batch = next_batch(scheduler, "w0")
    scheduler.worker_ready("w1", facts(model="B"))
    assert scheduler.complete("w0", computed_by("A", batch), 0.0) == [job]
    assert job.usage(0.0).model == "A"


# -- wrong results -------------------------------------------------------------------------------------


def changed(batch: Batch, **changes: Any) -> Result:
    """Return the result of a batch with other values for its first part."""
    result = computed(batch)
    first, *others = result.part_results
    return replace(result, part_results=[replace(first, **changes), *others])


WRONG_RESULTS: dict[str, Callable[[Batch], Result]] = {
    "too few parts": lambda batch: Result(batch.batch_id, []),
    "too many parts": lambda batch: Result(batch.batch_id, [*computed(batch).part_results] * 2),
    "too many rows": lambda batch: changed(batch, rows=np.zeros((len(texts_of(batch)) + 1, 1))),
    "no rows": lambda batch: changed(batch, rows=np.float64(1.0)),
    "other counts": lambda batch: changed(batch, counts=[5] * len(batch.parts[0].texts)),
    "tokens of other texts": lambda batch: changed(batch, tokens=[[]] * 999),
    "a truncated text that is not there": lambda batch: changed(batch, truncated=[999]),
    "a rejected text that is not there": lambda batch: Result(
        batch.batch_id, [Rejected(InvalidRequest("no"), 999) for _ in batch.parts]
    ),
}


def test_a_result_that_cannot_be_stored_fails_its_job_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler()
    bad, good = submit(scheduler, ALICE, 1), submit(scheduler, BOB, 1)
    store = Job.store

    def fails_once(job: Job, *args: Any) -> None:
        if job is bad:
            raise TypeError
        store(job, *args)

    monkeypatch.setattr(Job, "store", fails_once)
    failure, done = scheduler.complete("w0", computed(next_batch(scheduler)), 0.0)
    assert isinstance(failure, Failure)
    assert (failure.job, type(failure.error), done) == (bad, WorkerFailed, good)
    assert scheduler.is_idle


@pytest.mark.parametrize("make_wrong", WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_a_wrong_result_fails_its_batch_and_nothing_else(make_wrong: Callable[[Batch], Result]) -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 2)
    wrong = make_wrong(next_batch(scheduler))
    other = submit(scheduler, BOB, 200)
    assert scheduler.complete("w0", wrong, 0.0) == []
    assert texts_of(turn(scheduler)) == job.texts[:1]  # the batch was halved
    (failure,) = scheduler.complete("w0", make_wrong(next_batch(scheduler)), 0.0)
    assert isinstance(failure, Failure)
    assert (failure.job, type(failure.error)) == (job, WorkerFailed)
    assert "wrong result" in failure.error.message
    assert run_all(scheduler) == [other]
    assert scheduler.is_idle


def test_vectors_of_another_width_do_not_join_a_job() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, FULL_BATCH + 1)
    turn(scheduler)
    (failure,) = scheduler.complete("w0", changed(next_batch(scheduler), rows=np.zeros((1, 7))), 0.0)
    assert isinstance(failure, Failure)
    assert (failure.job, scheduler.is_idle) == (job, True)
    assert "expected vectors like the others of the request" in failure.error.message


def test_a_job_for_whose_vectors_there_is_no_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    scheduler = make_scheduler()
    jobs = [submit(scheduler, ALICE, 1), submit(scheduler, BOB, 1)]
    batch = next_batch(scheduler)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "store", no_memory)
        failures = scheduler.complete("w0", computed(batch), 0.0)
    assert [failure.job for failure in failures if isinstance(failure, Failure)] == jobs
    job = submit(scheduler, ALICE, 1)
    assert run_all(scheduler) == [job]


def test_unreadable_result_fails_the_batches_of_its_worker() -> None:
    scheduler = make_scheduler()
    one = submit(scheduler, ALICE, 1)
    next_batch(scheduler)
    many = submit(scheduler, BOB, FULL_BATCH)
    next_batch(scheduler)
    (failure,) = scheduler.fail_in_flight("w0", "the message cannot be read")
    assert failure.job == one
    assert run_all(scheduler) == [many]
    assert scheduler.fail_in_flight("w0", "the message cannot be read") == []  # the worker has no batch
    assert scheduler.fail_in_flight("w7", "the message cannot be read") == []


# -- the end of a job ----------------------------------------------------------------------------------


def test_job_is_done_once_its_last_row_arrives() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, FULL_BATCH + 50)
    first, second = next_batch(scheduler), next_batch(scheduler)
    assert scheduler.complete("w0", computed(first), 0.0) == []
    assert scheduler.complete("w0", computed(second), 0.0) == [job]
    assert scheduler.is_idle


def test_job_expires_at_its_deadline_and_not_before() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1, now=10.0, deadline_ms=500)
    assert list(scheduler.expire(10.49)) == []
    (failure,) = scheduler.expire(10.5)
    assert isinstance(failure.error, DeadlineExceeded)
    assert "500 ms" in failure.error.message


def test_expired_job_is_never_computed() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 5, deadline_ms=100)
    alive = submit(scheduler, BOB, 5)
    list(scheduler.expire(1.0))
    assert texts_of(next_batch(scheduler, now=1.0)) == alive.texts


def test_job_without_deadline_never_expires() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1)
    assert list(scheduler.expire(1e9)) == []


def test_job_that_is_done_does_not_expire() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1, deadline_ms=100)
    run_all(scheduler)
    assert list(scheduler.expire(1.0)) == []


def test_result_of_an_expired_job_is_ignored() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1, deadline_ms=100)
    batch = next_batch(scheduler)
    list(scheduler.expire(1.0))
    assert scheduler.complete("w0", computed(batch), 1.1) == []


def test_cancel_ends_the_jobs_of_one_client_only() -> None:
    scheduler = make_scheduler()
    mine = [submit(scheduler, ALICE, 1), submit(scheduler, ALICE, 100)]
    other = submit(scheduler, BOB, 1)
    assert list(scheduler.cancel(ALICE)) == mine
    assert run_all(scheduler) == [other]


def test_one_request_is_cancelled_by_its_id_and_its_result_is_dropped() -> None:
    scheduler = make_scheduler()
    mine = submit(scheduler, ALICE, 1)
    other = submit(scheduler, BOB, 1)  # with the same request id
    batch = next_batch(scheduler)
    assert scheduler.cancel_request(ALICE, b"1") is mine
    assert scheduler.cancel_request(ALICE, b"1") is None
    assert scheduler.complete("w0", computed(batch), 0.0) == [other]
    assert scheduler.cancel_request(BOB, b"1") is None


def test_cancel_by_id_ends_the_latest_of_equal_requests() -> None:
    scheduler = make_scheduler()
    first, second = submit(scheduler, ALICE, 1), submit(scheduler, ALICE, 1)
    assert scheduler.cancel_request(ALICE, b"1") is second
    assert run_all(scheduler) == [first]


def test_cancelled_texts_leave_the_queue_at_once() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 500)
    next_batch(scheduler)
    list(scheduler.cancel(ALICE))
    assert (scheduler.num_waiting, scheduler.admission.memory.held, scheduler.num_jobs) == (0, 0, 0)


def test_cancelled_job_is_not_tried_again_after_a_lost_worker() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 3)
    kept = submit(scheduler, BOB, 3)
    next_batch(scheduler)
    scheduler.worker_lost("w0")
    scheduler.worker_ready("w0", facts())
    list(scheduler.cancel(ALICE))
    assert texts_of(next_batch(scheduler)) == kept.texts


def test_cancelled_job_cannot_fail() -> None:
    scheduler = make_scheduler()
    submit(scheduler, ALICE, 1)
    batch = next_batch(scheduler)
    list(scheduler.cancel(ALICE))
    assert scheduler.fail("w0", batch.batch_id, "too late") == []


def test_second_result_of_a_batch_is_ignored() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 1)
    result = computed(next_batch(scheduler))
    assert [scheduler.complete("w0", result, 0.0) for _ in range(2)] == [[job], []]


def test_late_result_of_a_lost_worker_is_ignored() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 1)
    late = computed(next_batch(scheduler))
    scheduler.worker_lost("w0")
    assert scheduler.complete("w0", late, 0.0) == []
    scheduler.worker_ready("w0", facts())
    assert scheduler.complete("w0", late, 0.0) == []
    assert run_all(scheduler) == [job]


def test_fail_all_ends_every_job_with_unavailable() -> None:
    scheduler = make_scheduler()
    jobs = [submit(scheduler, ALICE, 1), submit(scheduler, BOB, 500)]
    next_batch(scheduler)
    failures = list(scheduler.fail_all(Unavailable("the server is shutting down")))
    assert [f.job for f in failures] == jobs
    assert all(isinstance(f.error, Unavailable) for f in failures)
    assert scheduler.is_idle


class WatchedTexts(list[str]):
    """A list that can be weakly referenced, to see when it is freed."""


@pytest.mark.parametrize("is_unsubscribed", [False, True])
@pytest.mark.parametrize("end", ["expire", "cancel"])
def test_texts_of_an_ended_job_are_freed_even_without_a_worker(end: str, is_unsubscribed: bool) -> None:
    scheduler = make_scheduler(workers=0)
    texts = WatchedTexts(make_texts(3))
    scheduler.submit(request(ALICE, texts, deadline_ms=100), 0.0, is_unsubscribed=is_unsubscribed)
    watch = weakref.ref(texts)
    del texts
    list(scheduler.expire(1.0) if end == "expire" else scheduler.cancel(ALICE))
    assert watch() is None


# -- full queue ----------------------------------------------------------------------------------------


def test_full_queue_rejects_with_overloaded() -> None:
    scheduler = make_scheduler(workers=0, queue_capacity=10)
    submit(scheduler, ALICE, 8)
    with pytest.raises(Overloaded, match="8 texts wait, and there is room for 2"):
        submit(scheduler, BOB, 3)


def test_queue_accepts_exactly_its_capacity() -> None:
    scheduler = make_scheduler(workers=0, queue_capacity=10)
    submit(scheduler, ALICE, 8)
    submit(scheduler, BOB, 2)
    assert scheduler.num_waiting == 10


def test_rejected_request_leaves_no_trace() -> None:
    scheduler = make_scheduler(queue_capacity=10)
    first = submit(scheduler, ALICE, 8)
    with pytest.raises(Overloaded):
        submit(scheduler, BOB, 3)
    assert run_all(scheduler) == [first]
    assert (scheduler.num_waiting, scheduler.num_jobs) == (0, 0)


def test_batch_that_was_sent_makes_room_in_the_queue() -> None:
    scheduler = make_scheduler(queue_capacity=10)
    submit(scheduler, ALICE, 10)
    next_batch(scheduler)
    submit(scheduler, BOB, 10)
    assert scheduler.num_waiting == 10


@pytest.mark.parametrize(("workers", "expected_ms"), [(1, 200), (2, 100), (0, 1000)])
def test_overloaded_has_a_retry_time_from_the_measured_rate(workers: int, expected_ms: int) -> None:
    scheduler = make_scheduler(workers=workers, queue_capacity=1000)
    submit(scheduler, ALICE, 1000)
    with pytest.raises(Overloaded) as caught:
        submit(scheduler, BOB, 250)  # 4,000 tokens at 20,000 tokens/s per worker
    assert caught.value.retry_after_ms == expected_ms


def test_request_larger_than_the_queue_is_too_large_even_if_the_queue_is_empty() -> None:
    scheduler = make_scheduler(queue_capacity=10)
    with pytest.raises(PayloadTooLarge, match="at most 10 texts, got 11"):
        submit(scheduler, ALICE, 11)


def test_one_client_cannot_fill_the_queue() -> None:
    scheduler = make_scheduler(workers=0, queue_capacity=1000, flow_share=0.5)
    submit(scheduler, ALICE, 500)
    with pytest.raises(Overloaded):
        submit(scheduler, ALICE, 1)
    submit(scheduler, BOB, 250)


def test_a_few_texts_are_accepted_from_the_reserve() -> None:
    scheduler = make_scheduler(workers=0, queue_capacity=1600)
    submit(scheduler, ALICE, 1600)
    submit(scheduler, BOB, 64)
    with pytest.raises(Overloaded):
        submit(scheduler, BOB, 1)


def test_requests_beyond_the_memory_are_rejected_with_overloaded() -> None:
    scheduler = make_scheduler(memory_bytes=10 << 20)
    submit(scheduler, ALICE, 4000)
    with pytest.raises(Overloaded, match="no room") as caught:
        submit(scheduler, BOB, 4000)
    assert (caught.value.retry_after_ms or 0) > 1


def test_requests_without_room_are_counted_by_reason() -> None:
    scheduler = make_scheduler(memory_bytes=10 << 20)
    submit(scheduler, ALICE, 4000)
    with pytest.raises(Overloaded):
        submit(scheduler, BOB, 4000)
    assert scheduler.admission.num_refused == {"memory": 1, "queue": 0, "too_large": 0}
    full = make_scheduler(workers=0, queue_capacity=10)
    submit(full, ALICE, 8)
    with pytest.raises(Overloaded):
        submit(full, BOB, 3)
    with pytest.raises(PayloadTooLarge):
        submit(full, BOB, 11)
    assert full.admission.num_refused == {"memory": 0, "queue": 1, "too_large": 1}


def test_a_gateways_flow_may_have_a_smaller_share() -> None:
    scheduler = make_scheduler(queue_capacity=1000, flow_share=0.5)
    with pytest.raises(PayloadTooLarge):
        submit(scheduler, ALICE, 101, flow="key:small", flow_share=0.1)
    submit(scheduler, ALICE, 100, flow="key:small", flow_share=0.1)


def test_nothing_stays_reserved_for_a_refused_request() -> None:
    scheduler = make_scheduler(queue_capacity=10)
    held = scheduler.admission.reserve_body(ALICE, b"x" * 100)
    with pytest.raises(PayloadTooLarge):
        scheduler.submit(request(ALICE, make_texts(11)), 0.0, held)
    assert scheduler.admission.memory.held == 0


def test_bytes_stay_reserved_until_the_reply_is_sent() -> None:
    scheduler = make_scheduler()
    job = submit(scheduler, ALICE, 1)
    run_all(scheduler)
    assert scheduler.admission.memory.held > 384 * 4
    job.reservation.release()
    assert scheduler.admission.memory.held == 0


def test_a_client_that_subscribes_holds_its_requests_itself() -> None:
    scheduler = make_scheduler(workers=0)
    submit(scheduler, ALICE, 1, is_unsubscribed=True)
    list(scheduler.client_subscribed(ALICE))
    assert scheduler.admission.memory.held_by(b"identity:" + ALICE) == scheduler.admission.memory.held


def test_the_next_deadline_is_known() -> None:
    scheduler = make_scheduler()
    assert scheduler.next_deadline is None
    submit(scheduler, ALICE, 1, now=10.0, deadline_ms=500)
    submit(scheduler, ALICE, 1, now=10.0, deadline_ms=200)
    assert scheduler.next_deadline == 10.2


def test_the_age_of_the_oldest_request_is_of_one_that_waits() -> None:
    scheduler = make_scheduler(max_batch_size=1)
    for now in (0.0, 1.0, 2.0):
        submit(scheduler, ALICE, 1, now=now)
    ages = [scheduler.oldest_age_s(5.0)]
    turn(scheduler)
    ages.append(scheduler.oldest_age_s(5.0))
    list(scheduler.cancel(ALICE))
    assert [*ages, scheduler.oldest_age_s(5.0)] == [5.0, 4.0, 0.0]


def test_what_waits_is_counted_by_priority() -> None:
    scheduler = make_scheduler(max_batch_size=10)
    shown = []

    def show() -> None:
        waiting = scheduler.waiting(5.0)
        shown.append([(each.num_texts, each.oldest_age_s) for each in (waiting["small"], waiting["large"])])
        assert sum(each.num_texts for each in waiting.values()) == scheduler.num_waiting
        assert sum(each.num_tokens for each in waiting.values()) == pytest.approx(scheduler.waiting_tokens)

    submit_unsubscribed(scheduler, 3)
    submit(scheduler, BOB, 40, now=2.0)
    show()
    turn(scheduler)
    show()
    list(scheduler.client_subscribed(b"0"))
    list(scheduler.cancel(BOB))
    show()
    assert shown[0] == [(3, 5.0), (40, 3.0)]
    assert sum(num_texts for num_texts, _ in shown[1]) == 33
    assert shown[2] == [(0, 0.0), (0, 0.0)]


def test_a_full_batch_is_known_for_each_worker() -> None:
    scheduler = make_scheduler(tokens_per_s=10_000)
    assert scheduler.full_batch_tokens("w0") == 800
    scheduler.worker_lost("w0")
    assert scheduler.full_batch_tokens("w0") == 0


# -- queries -------------------------------------------------------------------------------------------


def test_worker_is_overdue_when_its_oldest_batch_is_overdue() -> None:
    clock = LoopClock()
    scheduler = make_scheduler(workers=2, clock=clock)
    submit(scheduler, ALICE, 150)
    next_batch(scheduler, "w0")
    clock.now = 60.0
    next_batch(scheduler, "w1")
    clock.now = 120.5
    assert scheduler.overdue(120.0) == ["w0"]


def test_idle_worker_is_never_overdue() -> None:
    clock = LoopClock()
    scheduler = make_scheduler(clock=clock)
    submit(scheduler, ALICE, 1)
    turn(scheduler)
    clock.now = 1e9
    assert scheduler.overdue(1.0) == []


def test_the_time_in_which_a_batch_ahead_waits_does_not_make_it_overdue() -> None:
    clock = LoopClock()
    scheduler = make_scheduler(clock=clock)
    submit(scheduler, ALICE, 200)
    first = next_batch(scheduler)
    next_batch(scheduler)
    clock.now = 100.0
    scheduler.complete("w0", computed(first), 0.0)
    clock.now = 150.0
    assert scheduler.overdue(120.0) == []


def test_worker_that_computes_micro_batches_is_not_overdue() -> None:
    clock = LoopClock()
    scheduler = make_scheduler(clock=clock)
    submit(scheduler, ALICE, 1)
    next_batch(scheduler)
    clock.now = 100.0
    scheduler.worker_progressed("w0", 1)
    clock.now = 220.0
    assert scheduler.overdue(120.0) == []
    scheduler.worker_progressed("w0", 1)  # the count has not grown
    clock.now = 220.5
    assert scheduler.overdue(120.0) == ["w0"]


def test_worker_with_a_batch_that_is_stuck_behind_others_is_overdue_in_the_end() -> None:
    clock = LoopClock()
    scheduler = make_scheduler(clock=clock)
    submit(scheduler, ALICE, 300)
    next_batch(scheduler)
    while clock.now < 1200:
        assert scheduler.overdue(120.0) == []
        scheduler.complete("w0", computed(next_batch(scheduler)), 0.0)
        submit(scheduler, ALICE, FULL_BATCH)
        clock.now += 60.0
    clock.now += 60.0
    scheduler.worker_progressed("w0", 1)
    assert scheduler.overdue(120.0) == ["w0"]


def test_repr_shows_the_counts() -> None:
    scheduler = make_scheduler(workers=2)
    submit(scheduler, ALICE, 150)
    next_batch(scheduler)
    assert repr(scheduler) == "<Scheduler jobs=1 waiting=50 workers=2 in_flight=1>"


# -- every sequence of events --------------------------------------------------------------------------

CLIENTS = st.sampled_from([ALICE, BOB, CAROL])
NAMES = st.sampled_from(["w0", "w1", "w2"])


class AnyOrderOfEvents(RuleBasedStateMachine):
    """In any order of events, every job ends once, its rows are in their places, and the counters are right."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.repeats = Repeats(ResultSizes(max_seq_len=512), cache_bytes=5000)
        self.scheduler = make_scheduler(
            workers=0,
            queue_capacity=400,
            memory_bytes=1 << 20,
            max_batch_size=50,
            priority_batch_size=4,
            repeats=self.repeats,
        )
        self.jobs: list[Job] = []
        self.ends: Counter[int] = Counter()
        self.in_flight: dict[str, list[Batch]] = {}
        self.old: list[tuple[str, Result]] = []
        self.model_of: dict[str, str] = {}

    @rule(
        client=CLIENTS,
        count=st.integers(1, 120),
        tokens=st.integers(5, 700),
        deadline=st.booleans(),
        is_unsubscribed=st.booleans(),
        repeats=st.booleans(),
    )
    def submit(
        self, client: bytes, count: int, tokens: int, deadline: bool, is_unsubscribed: bool, repeats: bool
    ) -> None:
        texts = [f"{i % 7} equal" for i in range(count)] if repeats else make_texts(count, tokens)
        try:
            job = self.scheduler.submit(
                request(client, texts, deadline_ms=300 if deadline else None),
                self.now,
                is_unsubscribed=is_unsubscribed,
            )
        except Overloaded as caught:
            overload: Overloaded | None = caught
        else:
            overload = None
            self.jobs.append(job)
            if job.is_done:
                self._check_rows(job)
                self._end(job)
        assert overload is None or (overload.retry_after_ms or 0) >= 1

    @rule(name=NAMES, rate=st.sampled_from([500, 20_000, 1_000_000]), model=st.sampled_from("AAAB"))
    def worker_ready(self, name: str, rate: int, model: str) -> None:
        """A worker becomes ready, or a successor takes its place."""
        self.old += [(name, computed_by(self.model_of[name], batch)) for batch in self.in_flight.get(name, [])]
        self.in_flight[name] = []
        self.model_of[name] = self.newest = model
        self.scheduler.worker_ready(name, facts(rate, 1024, model))

    @rule()
    def dispatch(self) -> None:
        for name, batch in self.scheduler.next_batches(self.now):
            self.in_flight[name].append(batch)
            assert self.model_of[name] == self.newest
            assert len(self.in_flight[name]) <= 2
            assert 1 <= len(texts_of(batch)) <= 50

    @precondition(lambda self: any(self.in_flight.values()))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        name, batch = self._pick(data)
        result = computed_by(self.model_of[name], batch)
        self.old.append((name, result))
        for job in self.scheduler.complete(name, result, self.now):
            self._check_rows(job)
            self._end(job)

    @precondition(lambda self: any(self.in_flight.values()))
    @rule(data=st.data(), make_wrong=st.sampled_from(sorted(WRONG_RESULTS)))
    def complete_wrongly(self, data: st.DataObject, make_wrong: str) -> None:
        name, batch = self._pick(data)
        self._end_failed(self.scheduler.complete(name, WRONG_RESULTS[make_wrong](batch), self.now))

    @precondition(lambda self: any(self.in_flight.values()))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name, batch = self._pick(data)
        self._end_failed(self.scheduler.fail(name, batch.batch_id, "boom"))

    @rule(name=NAMES)
    def worker_lost(self, name: str) -> None:
        batches = self.in_flight.pop(name, [])
        self.old += [(name, computed_by(self.model_of[name], batch)) for batch in batches]
        self._end_failed(self.scheduler.worker_lost(name))

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def late_result(self, data: st.DataObject) -> None:
        name, result = data.draw(st.sampled_from(self.old))
        assert self.scheduler.complete(name, result, self.now) == []

    @rule(client=CLIENTS)
    def client_subscribed(self, client: bytes) -> None:
        list(self.scheduler.client_subscribed(client))

    @rule(client=CLIENTS)
    def cancel(self, client: bytes) -> None:
        for job in self.scheduler.cancel(client):
            assert job.identity == client
            self._end(job)

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._end_failed(self.scheduler.expire(self.now))

    @invariant()
    def counters_follow(self) -> None:
        open_jobs = [job for job in self.jobs if job.is_open]
        assert self.scheduler.num_jobs == len(open_jobs)
        assert self.scheduler.num_waiting == sum(job.num_waiting for job in open_jobs)
        assert self.scheduler.admission.memory.held == sum(job.reservation.amount for job in open_jobs)
        assert all(self.ends[job.job_id] == (not job.is_open) for job in self.jobs)

    def teardown(self) -> None:
        """Check that one worker that does not die can finish all jobs."""
        for name in ("w0", "w1", "w2"):
            self.worker_lost(name)
        self.worker_ready("w0", 20_000, "C")
        while True:
            self.dispatch()
            if not self.in_flight["w0"]:
                break
            for job in self.scheduler.complete("w0", computed_by("C", self.in_flight["w0"].pop(0)), self.now):
                self._check_rows(job)
                self._end(job)
        assert {self.ends[job.job_id] for job in self.jobs} <= {1}
        assert self.scheduler.is_idle
        assert len(self.repeats.in_flight) == 0
        assert (self.scheduler.num_waiting, self.scheduler.admission.memory.held) == (0, 0)

    def _pick(self, data: st.DataObject) -> tuple[str, Batch]:
        name = data.draw(st.sampled_from(sorted(n for n, batches in self.in_flight.items() if batches)))
        batches = self.in_flight[name]
        return name, batches.pop(data.draw(st.integers(0, len(batches) - 1)))

    def _check_rows(self, job: Job) -> None:
        """Check that the rows are in their places, and that all come from one model."""
        assert [row[0] for row in rows_of(job)] == [number_of(text) for text in job.texts]
        assert {chr(int(row[1])) for row in rows_of(job)} == {job.result.model}

    def _end(self, job: Job) -> None:
        self.ends[job.job_id] += 1
        job.reservation.release()  # as when the reply is sent
        assert self.ends[job.job_id] == 1

    def _end_failed(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self._end(failure.job)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=60, stateful_step_count=40)
