"""Scheduler, account and outbox together: what holds in every order of events.

A machine of hypothesis plays clients, workers and the broker's loop with a clock of its own:

- Every accepted request has exactly one answer: its vectors or an error. An answer may be lost only if it was
  dropped because of a limit, or if the client cancelled the request.
- A client that stays and reads always has its answer.
- The rows of a reply are those of its request. Each row begins with the number of its text.
- No limit is passed at any moment, and nothing is reserved when everything has ended.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from bert_serving.protocol import (
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    InvalidRequest,
    ServingError,
    Text,
    Unavailable,
    reply_from_frames,
    reply_to_frames,
    request_to_frames,
)
from bert_serving.protocol.workers import Batch, Rejected, Result, Vectors
from bert_serving.server.broker.account import NoRoom, Reservation
from bert_serving.server.broker.budget import Budget
from bert_serving.server.broker.held_reply import Dropped, HeldReply
from bert_serving.server.broker.job import Job
from bert_serving.server.broker.outbox import Outbox
from bert_serving.server.broker.pipes import Pipes
from bert_serving.server.broker.repeats import Repeats
from bert_serving.server.broker.scheduler import Failure, Scheduler
from bert_serving.server.broker.sizes import ResultSizes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.model_facts import model_facts

READER = b"reader"  # has subscribed, reads everything, and never leaves
OTHERS = (b"alice", b"bob", b"carol")  # subscribe, leave and stop reading at any time
MEMORY_BYTES = 512 << 10
QUEUE_CAPACITY = 320
WIDE = 300  # components of the vectors of some requests; the broker expects 1
NARROW = 1

CLIENTS = st.sampled_from([READER, *OTHERS])
WORKERS = st.sampled_from(["w0", "w1"])

_unique = itertools.count(1)


class FakeTracker:
    """What pyzmq returns for a frame in a pipe."""

    done = False


def make_texts(count: int, width: int) -> list[str]:
    return [f"{next(_unique)} {width} " + "x" * 40 for _ in range(count)]


def repeated_texts(count: int, width: int) -> list[str]:
    return [f"{i % 5} {width} " + "x" * 40 for i in range(count)]


def row_of(text: Text) -> list[float]:
    number, width = map(int, str(text).split()[:2])
    return [float(number)] * width


def computed(batch: Batch) -> Result:
    parts = [
        Vectors(np.array([row_of(text) for text in part.texts], np.float32), [12] * len(part.texts))
        for part in batch.parts
    ]
    return Result(batch.batch_id, parts, compute_ms=10.0)


def unlimited() -> Budget:
    return Budget(60.0)


class AnyNeighbours(RuleBasedStateMachine):
    """See the docstring of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        sizes = ResultSizes(max_seq_len=512)
        self.repeats = Repeats(sizes, cache_bytes=20_000)
        self.scheduler = Scheduler(
            memory_bytes=MEMORY_BYTES,
            queue_capacity=QUEUE_CAPACITY,
            flow_share=0.5,
            sizes=sizes,
            max_batch_size=40,
            priority_batch_size=4,
            max_seq_len=512,
            repeats=self.repeats,
        )
        self.memory, self.texts = self.scheduler.admission.memory, self.scheduler.admission.texts
        self.dropped: set[bytes] = set()
        self.outbox = Outbox(max_age_s=5.0, on_dropped=self.note_dropped)
        self.pipes = Pipes()
        self.trackers: list[FakeTracker] = []
        self.requests: dict[bytes, EncodeRequest] = {}  # the accepted ones
        self.cancelled: set[bytes] = set()
        self.answers: Counter[bytes] = Counter()
        self.subscribers: Counter[bytes] = Counter()
        self.deaf: set[bytes] = set()  # topics with a subscriber that does not read
        self.in_flight: dict[str, list[Batch]] = {}
        self.subscribe(READER)

    def note_dropped(self, dropped: Dropped) -> None:
        self.dropped.add(dropped.request_id)

    # -- clients ---------------------------------------------------------------------------------------

    @rule(
        client=CLIENTS,
        count=st.integers(1, 60),
        make=st.sampled_from([make_texts, repeated_texts]),
        is_wide=st.booleans(),
        has_deadline=st.booleans(),
    )
    def submit(
        self, client: bytes, count: int, make: Callable[[int, int], list[str]], is_wide: bool, has_deadline: bool
    ) -> None:
        texts = make(count, WIDE if is_wide else NARROW)
        request_id = b"%d" % next(_unique)
        request = EncodeRequest(client, request_id, texts, deadline_ms=500 if has_deadline else None)
        is_unsubscribed = not self.outbox.has_subscriber(client)
        held: Reservation | None = None
        try:
            held = self.scheduler.admission.reserve_body(client, request_to_frames(request)[1])
            job = self.scheduler.submit(request, self.now, held, is_unsubscribed=is_unsubscribed)
        except ServingError:
            if held is not None:
                held.release()
            return
        self.requests[request_id] = request
        if job.is_done:
            self.reply_to(job)

    @rule(client=CLIENTS)
    def refuse(self, client: bytes) -> None:
        """A malformed request: its answer counts in no account."""
        self.post_error(client, b"0", InvalidRequest("wrong"))

    @rule(client=st.sampled_from(OTHERS))
    def subscribe(self, client: bytes) -> None:
        self.subscribers[client] += 1
        self.outbox.subscribe(client)
        list(self.scheduler.client_subscribed(client))

    @rule(client=st.sampled_from(OTHERS))
    def leave(self, client: bytes) -> None:
        lost = Unavailable("the connection was lost")
        self.subscribers[client] -= self.subscribers[client] > 0
        if self.outbox.unsubscribe(client, lost, self.now):
            self.deaf.discard(client)
            for job in self.scheduler.cancel(client):
                note = reply_to_frames(ErrorReply(client, job.request.request_id, lost))
                self.outbox.post_note(note, self.now)

    @rule(client=st.sampled_from(OTHERS))
    def stop_or_go_on_reading(self, client: bytes) -> None:
        self.deaf ^= {client}

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel_request(self, data: st.DataObject) -> None:
        request = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        if self.scheduler.cancel_request(request.identity, request.request_id) is not None:
            self.cancelled.add(request.request_id)

    # -- workers ---------------------------------------------------------------------------------------

    @rule(name=WORKERS, model=st.sampled_from(["old", "new"]))
    def worker_ready(self, name: str, model: str) -> None:
        if name not in self.in_flight:
            self.in_flight[name] = []
            self.scheduler.worker_ready(name, model_facts(dimension=NARROW, hidden_size=NARROW, fingerprint=model))

    @rule()
    def send_batches(self) -> None:
        for name, batch in self.scheduler.next_batches(self.now):
            self.in_flight[name].append(batch)

    @precondition(lambda self: any(self.in_flight.values()))
    @rule(data=st.data(), is_rejected=st.booleans())
    def complete(self, data: st.DataObject, is_rejected: bool) -> None:
        name, batch = self.pick(data)
        result = computed(batch)
        if is_rejected:
            result = Result(batch.batch_id, [Rejected(InvalidRequest("no"), 0), *result.part_results[1:]])
        self.end(self.scheduler.complete(name, result, self.now))

    @precondition(lambda self: any(self.in_flight.values()))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name, batch = self.pick(data)
        self.end(self.scheduler.fail(name, batch.batch_id, "boom"))

    @rule(name=WORKERS)
    def worker_lost(self, name: str) -> None:
        self.in_flight.pop(name, None)
        self.end(self.scheduler.worker_lost(name))

    # -- the loop --------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.3, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.deliver()  # the last thing in each step of the broker
        self.now += seconds
        self.end(self.scheduler.expire(self.now))
        self.outbox.expire(self.now, unlimited())

    @rule()
    def deliver(self) -> None:
        self.outbox.deliver(self.send, self.now, unlimited())
        self.pipes.collect()

    @rule()
    def pipes_are_emptied(self) -> None:
        for tracker in self.trackers:
            tracker.done = True
        self.trackers.clear()
        while len(self.pipes):
            self.pipes.collect()

    # -- what must hold --------------------------------------------------------------------------------

    @invariant()
    def no_limit_is_passed(self) -> None:
        assert self.memory.held <= MEMORY_BYTES
        assert self.texts.held <= QUEUE_CAPACITY * 17 // 16
        assert self.outbox.held_bytes <= MEMORY_BYTES + (76 << 20)

    @invariant()
    def no_request_has_two_answers(self) -> None:
        assert all(count == 1 for count in self.answers.values())

    def teardown(self) -> None:
        """Everybody subscribes and reads, and one worker computes everything that is left."""
        self.deaf.clear()
        for client in OTHERS:
            self.subscribe(client)
        for name in ("w0", "w1"):
            self.worker_lost(name)
        self.worker_ready("w0", "last")
        while True:
            self.send_batches()
            if not self.in_flight["w0"]:
                break
            self.end(self.scheduler.complete("w0", computed(self.in_flight["w0"].pop(0)), self.now))
        self.outbox.expire(self.now, unlimited())
        while self.outbox.has_deliverable:
            self.deliver()
        self.pipes_are_emptied()
        assert self.scheduler.is_idle
        assert len(self.repeats.in_flight) == 0
        assert (self.memory.held, self.memory.num_flows, self.texts.held, self.outbox.held_bytes) == (0, 0, 0, 0)
        for request_id, request in self.requests.items():
            is_lost = request_id in (self.dropped if request.identity != READER else ())
            assert self.answers[request_id] == 1 or is_lost or request_id in self.cancelled

    # -- inside: the broker's part ---------------------------------------------------------------------

    def end(self, ended: Iterable[Job | Failure]) -> None:
        for each in ended:
            if isinstance(each, Failure):
                self.post_error(each.job.identity, each.job.request.request_id, each.error)
            else:
                self.reply_to(each)

    def reply_to(self, job: Job) -> None:
        try:
            reply = job.to_reply(job.usage(self.now), token_rows=None)
            self.outbox.post(reply_to_frames(reply), self.now, job.reservation)
        except NoRoom as exc:
            job.reservation.release()
            self.post_error(job.identity, job.request.request_id, self.scheduler.admission.no_bytes(exc))

    def post_error(self, client: bytes, request_id: bytes, error: ServingError) -> None:
        self.outbox.post(reply_to_frames(ErrorReply(client, request_id, error)), self.now)

    def send(self, reply: HeldReply, is_lossy: bool) -> bool:
        client = next(c for c in (READER, *OTHERS) if reply.topic.startswith(c))
        if client in self.deaf and not is_lossy:
            return False
        if reply.reservation is not None:
            tracker = FakeTracker()
            self.trackers.append(tracker)
            self.pipes.add([tracker], reply.reservation)
        self.check(reply)
        return True

    def check(self, held: HeldReply) -> None:
        reply = reply_from_frames(held.frames)
        request = self.requests.get(reply.request_id)
        if request is None:
            return
        self.answers[reply.request_id] += 1
        assert held.topic.startswith(request.identity)
        if isinstance(reply, EncodeReply):
            assert reply.rows.tolist() == [row_of(text) for text in request.texts]

    def pick(self, data: st.DataObject) -> tuple[str, Batch]:
        name = data.draw(st.sampled_from(sorted(n for n, batches in self.in_flight.items() if batches)))
        return name, self.in_flight[name].pop(0)


TestAnyNeighbours = AnyNeighbours.TestCase
TestAnyNeighbours.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
