"""The queue gives each flow the same share of tokens. In these tests, a text has as many tokens as characters."""

from __future__ import annotations

import itertools

from bert_serving.protocol import EncodeRequest, Text
from bert_serving.server.broker.account import Account
from bert_serving.server.broker.fair_queue import FairQueue
from bert_serving.server.broker.job import Job, Slice
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB, CAROL = b"alice", b"bob", b"carol"
QUANTUM = 256

_numbers = itertools.count(1)


def make_job(client: bytes, *lengths: int, flow: bytes | None = None) -> Job:
    request = EncodeRequest(client, b"1", ["x" * n for n in lengths])
    flow = client if flow is None else flow
    held, waiting = (Account(10**9, share=1.0).reserve(flow, len(lengths)) for _ in range(2))
    return Job(next(_numbers), request, 0.0, flow, held, waiting)


def cost(text: Text) -> float:
    return float(len(text))


def take(queue: FairQueue, max_tokens: float = 1e9, max_texts: int = 10**9) -> list[Slice]:
    return queue.take(max_tokens=max_tokens, max_texts=max_texts, cost=cost)[0]


def tokens_by_client(slices: list[Slice]) -> dict[bytes, float]:
    tokens = dict.fromkeys((ALICE, BOB, CAROL), 0.0)
    for part in slices:
        tokens[part.job.identity] = tokens.get(part.job.identity, 0.0) + sum(map(cost, part.texts))
    return tokens


def queue_of(*jobs: Job) -> FairQueue:
    queue = FairQueue()
    for job in jobs:
        queue.push(job)
    return queue


def test_new_queue_is_false_and_gives_nothing() -> None:
    queue = FairQueue()
    assert not queue
    assert queue.take(max_tokens=100, max_texts=10, cost=cost) == ([], 0)


def test_queue_is_true_while_a_text_waits() -> None:
    queue = queue_of(make_job(ALICE, 5, 5))
    take(queue, max_texts=1)
    assert queue
    take(queue, max_texts=1)
    assert not queue


def test_jobs_of_one_client_leave_in_their_order() -> None:
    jobs = [make_job(ALICE, 5) for _ in range(4)]
    assert [part.job for part in take(queue_of(*jobs))] == jobs


def test_take_returns_the_tokens_of_its_texts() -> None:
    queue = queue_of(make_job(ALICE, 5, 6), make_job(BOB, 7))
    assert queue.take(max_tokens=100, max_texts=10, cost=cost)[1] == 5 + 6 + 7


def test_take_stops_at_max_tokens() -> None:
    (part,) = take(queue_of(make_job(ALICE, *[10] * 20)), max_tokens=55)
    assert (part.start, part.stop) == (0, 5)


def test_take_stops_at_max_texts() -> None:
    slices = take(queue_of(make_job(ALICE, *[10] * 20), make_job(BOB, *[10] * 20)), max_texts=7)
    assert sum(map(len, slices)) == 7


def test_text_larger_than_the_limit_is_taken_alone() -> None:
    (part,) = take(queue_of(make_job(ALICE, 500, 1)), max_tokens=100)
    assert (part.start, part.stop) == (0, 1)


def test_a_flow_whose_text_is_too_long_now_is_skipped_and_goes_first_later() -> None:
    queue = queue_of(make_job(ALICE, 5000), make_job(CAROL, 10), make_job(BOB, 20, 20))
    found, tokens = queue.take(max_tokens=100, max_texts=10, cost=cost, max_text_tokens=1000)
    assert (tokens_by_client(found), tokens) == ({ALICE: 0, BOB: 40, CAROL: 10}, 50)
    queue.push(make_job(BOB, 20))
    assert tokens_by_client(take(queue, 100)) == {ALICE: 5000, BOB: 0, CAROL: 0}
    assert tokens_by_client(take(queue, 100)) == {ALICE: 0, BOB: 20, CAROL: 0}


def test_text_that_no_longer_fits_stays_for_the_next_take() -> None:
    big = make_job(BOB, 90)
    queue = queue_of(make_job(ALICE, 50), big)
    take(queue, max_tokens=100)
    assert [part.job for part in take(queue, max_tokens=100)] == [big]


def test_slice_begins_where_the_last_one_ended() -> None:
    queue = queue_of(make_job(ALICE, *[10] * 20))
    bounds = [(part.start, part.stop) for _ in range(3) for part in take(queue, max_tokens=70)]
    assert bounds == [(0, 7), (7, 14), (14, 20)]


def test_clients_take_turns_by_the_quantum() -> None:
    slices = take(queue_of(make_job(ALICE, *[64] * 100), make_job(BOB, *[64] * 100)), max_tokens=6 * QUANTUM)
    assert tokens_by_client(slices) == {ALICE: 3 * QUANTUM, BOB: 3 * QUANTUM, CAROL: 0}


def test_client_of_short_texts_gets_as_many_tokens_as_one_of_long_texts() -> None:
    queue = queue_of(make_job(ALICE, *[4] * 5000), make_job(BOB, *[128] * 500))
    tokens = tokens_by_client(take(queue, max_tokens=10_000))
    assert abs(tokens[ALICE] - tokens[BOB]) <= QUANTUM


def test_jobs_of_one_flow_are_served_in_their_order() -> None:
    crowd = [make_job(b"%d" % i, 64, flow=b"") for i in range(1000)]
    queue = queue_of(*crowd, make_job(ALICE, *[64] * 100))
    slices = take(queue, max_tokens=20 * QUANTUM)
    served = [part.job for part in slices if part.job.flow == b""]
    assert abs(tokens_by_client(slices)[ALICE] - 64 * len(served)) <= QUANTUM
    assert served == crowd[: len(served)]


def test_job_is_discarded_from_the_flow_that_it_shares() -> None:
    jobs = [make_job(client, 5, flow=b"") for client in (ALICE, BOB, CAROL)]
    queue = queue_of(*jobs)
    queue.discard(jobs[1])
    assert [part.job for part in take(queue)] == [jobs[0], jobs[2]]


def test_client_alone_gets_everything_in_one_slice() -> None:
    assert len(take(queue_of(make_job(ALICE, *[64] * 100)), max_tokens=6400)) == 1


def test_closed_job_is_skipped() -> None:
    closed, alive = make_job(ALICE, 5), make_job(ALICE, 5)
    queue = queue_of(closed, alive)
    closed.is_open = False
    assert [part.job for part in take(queue)] == [alive]


def test_queue_of_closed_jobs_is_false() -> None:
    job = make_job(ALICE, 5)
    queue = queue_of(job)
    job.is_open = False
    assert not queue


def test_job_that_closes_between_two_takes_gives_no_more_texts() -> None:
    job = make_job(ALICE, *[10] * 20)
    queue = queue_of(job)
    take(queue, max_texts=5)
    job.is_open = False
    assert take(queue) == []


def test_flows_that_come_and_go_while_nothing_is_taken_leave_nothing_behind() -> None:
    queue = queue_of(make_job(ALICE, 5))
    for i in range(10_000):
        job = make_job(b"%d" % i, 5)
        queue.push(job)
        queue.discard(job)
    assert len(queue._heap) < 300


def test_flow_that_loses_its_jobs_and_returns_is_served() -> None:
    gone, stays, returns = make_job(ALICE, 5), make_job(BOB, 5), make_job(ALICE, 5)
    queue = queue_of(gone, stays)
    queue.discard(gone)
    queue.push(returns)
    assert {part.job.job_id for part in take(queue)} == {stays.job_id, returns.job_id}
    assert not queue


def test_new_flow_has_no_debt_for_the_time_before_it() -> None:
    queue = queue_of(make_job(ALICE, *[64] * 1000))
    take(queue, max_tokens=20_000)
    queue.push(make_job(BOB, *[64] * 1000))
    assert tokens_by_client(take(queue, max_tokens=QUANTUM))[BOB] == QUANTUM


def test_new_flow_has_no_credit_either() -> None:
    queue = queue_of(make_job(ALICE, *[64] * 1000))
    for _ in range(80):
        take(queue, max_tokens=QUANTUM)
    queue.push(make_job(BOB, *[64] * 1000))
    tokens = tokens_by_client([part for _ in range(20) for part in take(queue, max_tokens=QUANTUM)])
    assert abs(tokens[ALICE] - tokens[BOB]) <= 2 * QUANTUM


def test_new_flow_is_served_within_one_round() -> None:
    queue = queue_of(make_job(ALICE, *[64] * 1000), make_job(BOB, *[64] * 1000))
    take(queue, max_tokens=10_000)
    queue.push(make_job(CAROL, 10))
    assert tokens_by_client(take(queue, max_tokens=3 * QUANTUM))[CAROL] == 10


def test_client_that_sends_again_and_again_does_not_starve_another() -> None:
    queue = queue_of(make_job(ALICE, *[10] * 1000))
    slices = take(queue, max_tokens=250)
    for _ in range(20):
        queue.push(make_job(BOB, *[10] * 25))  # one take removes all of BOB's texts, so his flow is new each time
        slices += take(queue, max_tokens=250)
    tokens = tokens_by_client(slices)
    assert tokens[ALICE] >= 0.4 * sum(tokens.values())


def test_debt_is_forgotten_once_the_queue_is_empty() -> None:
    queue = queue_of(make_job(ALICE, *[10] * 1000))
    take(queue)
    queue.push(make_job(ALICE, *[10] * 100))
    queue.push(make_job(BOB, *[10] * 100))
    tokens = tokens_by_client(take(queue, max_tokens=4 * QUANTUM))
    assert abs(tokens[ALICE] - tokens[BOB]) <= QUANTUM


LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=30)


@given(
    jobs=st.lists(st.tuples(st.sampled_from([ALICE, BOB, CAROL]), LENGTHS), max_size=10),
    limits=st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 40)), min_size=1),
)
def test_every_text_leaves_once_and_within_the_limits(
    jobs: list[tuple[bytes, list[int]]], limits: list[tuple[int, int]]
) -> None:
    all_jobs = [make_job(client, *lengths) for client, lengths in jobs]
    queue = queue_of(*all_jobs)
    taken: dict[int, list[int]] = {job.job_id: [] for job in all_jobs}
    for max_tokens, max_texts in itertools.cycle(limits):
        slices, worth = queue.take(max_tokens=max_tokens, max_texts=max_texts, cost=cost)
        if not slices:
            break
        count = sum(map(len, slices))
        assert worth == sum(tokens_by_client(slices).values())
        assert count <= max_texts
        assert worth <= max_tokens or count == 1
        for part in slices:
            taken[part.job.job_id] += range(part.start, part.stop)
    assert not queue
    assert taken == {job.job_id: list(range(len(job.texts))) for job in all_jobs}


@given(
    lengths=st.tuples(*[st.integers(1, 300)] * 3),
    limits=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
)
def test_no_waiting_flow_falls_behind_by_more_than_a_quantum_and_a_text(
    lengths: tuple[int, int, int], limits: list[int]
) -> None:
    clients = (ALICE, BOB, CAROL)
    queue = queue_of(*(make_job(c, *[n] * (200_000 // n)) for c, n in zip(clients, lengths, strict=True)))
    served = dict.fromkeys(clients, 0.0)
    for max_tokens in limits:
        for client, tokens in tokens_by_client(take(queue, max_tokens)).items():
            served[client] += tokens
    assert max(served.values()) - min(served.values()) <= QUANTUM + max(lengths)
