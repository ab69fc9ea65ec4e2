"""Decides which texts go to which worker, and when. Does no I/O and reads no clock.

Rules of this file:
- A batch holds the texts that wait at the moment when a worker can take a batch. No timer delays a batch: under
  load, batches grow by themselves; an idle server starts at once.
- A worker has at most two batches, apart from long ones: the one that it computes, and the next one. The next
  batch is sent only when it has as many tokens as the batch that is being computed, or half as many as a full
  batch. Until then, the worker is busy anyway, and the batch can grow.
- A batch has at most as many tokens as its worker computes in BATCH_S seconds (see worker_load.py). So an urgent
  text waits at most that long for each batch that was sent before it.
- A text with more tokens than that is a batch alone. With more than twice as many, it is a long batch. The worker
  computes long batches in turns with others, so they do not count when the next batch is chosen. A worker has at
  most two of them; while it has two, other texts overtake the next long text.
- job_queue.py decides which texts go first: small requests before large ones, and fairly among flows.
- While a worker has texts of large requests, small requests do not wait for them: they are sent at once, as one
  more batch of their own, and the next one when this is computed. The worker computes its batches in turns, so a
  small batch waits for one or two micro-batches, and large ones still get every second micro-batch. If small
  requests fill such a batch to its half, they also get their share of the others.
- The batches of a lost worker return to the front of the queue and become suspects. A suspect is sent only to a
  worker without other batches. If a third worker is lost while it has only this batch, or if a batch raises an
  error, the batch is split into halves. This is repeated until one text is left. Only the request with that text
  fails. Three, because processes are also killed at random: one batch seldom meets three such deaths.
- Only workers with the newest model get batches. If a job has vectors of an older model when vectors of the newest
  model arrive for it, all its texts are computed again. So the vectors of one reply come from one model.
- Every job ends exactly once: done, failed, expired or cancelled. Results that arrive after its end are ignored.

This file knows nothing about sockets and processes. `now` is in monotonic seconds. Whether a batch takes too long
is judged by the loop's clock (see loop_clock.py).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bert_serving.protocol import (
    DeadlineExceeded,
    EncodeRequest,
    ServingError,
    Unavailable,
    WorkerFailed,
)
from bert_serving.protocol.trace_names import TraceNames
from bert_serving.protocol.workers import Batch, ModelFacts, PartResult, Rejected, Result, Vectors

from .account import Reservation
from .admission import Admission
from .batching import BatchBuilder, InFlightBatch, halve
from .estimates import RateEstimate, TokenEstimate
from .job import PRIORITIES, Job, Priority, Slice
from .job_queue import JobQueue, flow_of
from .loop_clock import LoopClock
from .repeats import Repeats
from .result_check import result_error
from .sizes import ResultSizes
from .worker_load import WorkerLoad

log = logging.getLogger(__name__)

_MAX_LOST_WORKERS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that ended without vectors."""

    job: Job
    error: ServingError


class Waiting(NamedTuple):
    """The texts that were not given to a worker yet.

    num_tokens: as estimated. oldest_age_s: age of the oldest request that waits for its first batch.
    """

    num_texts: int
    num_tokens: float
    oldest_age_s: float


class Scheduler:
    """Owns every job from its arrival to its end.

    memory_bytes, queue_capacity, flow_share: limits for what all requests and one flow may hold; see Admission.
    sizes: estimates what a request will need. max_batch_size: limit for the number of texts in a batch.
    priority_batch_size: requests of up to this many texts overtake larger ones. max_seq_len: limit for the
    estimated tokens of a text, because longer texts are truncated. clock: the loop's clock. repeats: so
    that equal texts are computed once; None: each text is computed.

    model: fingerprint of the newest model, the one that became ready last; empty until a worker is ready.
    """

    def __init__(
        self,
        *,
        memory_bytes: int,
        queue_capacity: int,
        flow_share: float,
        sizes: ResultSizes,
        max_batch_size: int,
        priority_batch_size: int,
        max_seq_len: int,
        show_tokens: bool = False,
        clock: LoopClock | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        self._clock = clock or LoopClock()
        self._repeats = repeats
        self._max_batch_size = max_batch_size
        self._queue = JobQueue(
            priority_batch_size=priority_batch_size, max_seq_len=max_seq_len, show_tokens=show_tokens
        )
        self._to_send_again: deque[InFlightBatch] = deque()
        self._workers: dict[str, WorkerLoad] = {}
        self.model = ""
        self._batch_ids = itertools.count(1)
        self._estimate = TokenEstimate()
        self._sizes = sizes
        self.admission = Admission(
            memory_bytes=memory_bytes,
            queue_capacity=queue_capacity,
            flow_share=flow_share,
            sizes=sizes,
            cost=self._estimate.of_text,
            wait_ms=self._wait_ms,
        )

    def __repr__(self) -> str:
        in_flight = sum(len(worker.in_flight) for worker in self._workers.values())
        return (
            f"<Scheduler jobs={len(self._queue)} waiting={self.num_waiting} "
            f"workers={len(self._workers)} in_flight={in_flight}>"
        )

    @property
    def is_idle(self) -> bool:
        """Whether there is no open job."""
        return not self._queue

    @property
    def num_jobs(self) -> int:
        """The number of open jobs."""
        return len(self._queue)

    @property
    def num_waiting(self) -> int:
        """The number of texts that were not given to a worker yet."""
        return self.admission.texts.held

    @property
    def waiting_tokens(self) -> float:
        """The estimated tokens of the texts that were not given to a worker yet."""
        return self.num_waiting * self._estimate.tokens_per_text

    @property
    def next_deadline(self) -> float | None:
        """When a deadline may pass next; None if no request has a deadline."""
        return self._queue.next_deadline

    def oldest_age_s(self, now: float) -> float:
        """Return the age of the oldest request that waits for its first batch; 0 if there is none."""
        return max(self._queue.oldest_age_s(now, priority) for priority in PRIORITIES)

    def waiting(self, now: float) -> dict[Priority, Waiting]:
        """Return what waits for a worker."""
        texts, tokens_per_text = self.admission.texts.held_in, self._estimate.tokens_per_text
        return {
            each: Waiting(texts[each], texts[each] * tokens_per_text, self._queue.oldest_age_s(now, each))
            for each in PRIORITIES
        }

    def full_batch_tokens(self, name: str) -> float:
        """Return the number of tokens in a full batch for a worker; 0 if it is not known any more."""
        worker = self._workers.get(name)
        return 0.0 if worker is None else worker.full_batch_tokens

    @property
    def tokens_per_s(self) -> float:
        """The sum of the measured rates of all workers."""
        return sum(worker.rate.tokens_per_s for worker in self._workers.values())

    # -- jobs ------------------------------------------------------------------------------------------

    def submit(
        self, request: EncodeRequest, now: float, held: Reservation | None = None, *, is_unsubscribed: bool = False
    ) -> Job:
        """Queue a request. Raises PayloadTooLarge or Overloaded; then `held` is released.

        The job is done already if the vectors of all its texts are in the cache.
        held: what is reserved for the parsed request already. is_unsubscribed: no client has subscribed to the
        identity of the request yet; call `client_subscribed` when a client subscribes.
        """
        flow = flow_of(request.identity, request.flow, is_unsubscribed=is_unsubscribed)
        held = held or self.admission.reserve_body(flow, b"", share=request.flow_share)
        num_bytes = held.amount
        try:
            waiting = self.admission.reserve_job(request, flow, held, priority=self._queue.priority_of(request))
        except ServingError:
            held.release()
            raise
        job = self._queue.add(request, now, flow=flow, num_bytes=num_bytes, held=held, waiting=waiting)
        if self._repeats is not None:
            self._queue.skip(job, self._repeats.arrived(job, self.model, now))
        if job.is_done:
            self._queue.close(job)
        return job

    def client_subscribed(self, identity: bytes) -> Iterator[None]:
        """Move the open requests of an identity to its own flow, one in each step of the iterator."""
        return self._queue.client_subscribed(identity)

    def cancel(self, identity: bytes) -> Iterator[Job]:
        """End the jobs that a client has now, because it disconnected: one in each step of the iterator."""
        return self._cancel(self._queue.take_jobs_of(identity))

    def _cancel(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            if job.is_open:
                self._queue.close(job)
                yield job

    def has_job(self, request: EncodeRequest) -> bool:
        """Whether the same request is open already: a client has sent it again because it lost a connection."""
        job = self._queue.job_of(request.identity, request.request_id)
        return job is not None and all(
            getattr(job.request, name) == getattr(request, name) for name in ("texts", "options", "spans")
        )

    def cancel_request(self, identity: bytes, request_id: bytes) -> Job | None:
        """End the job of one request; return the job, or None if there is no open job."""
        job = self._queue.job_of(identity, request_id)
        if job is not None:
            self._queue.close(job)
        return job

    def expire(self, now: float) -> Iterator[Failure]:
        """End the jobs whose deadline has passed, one in each step of the iterator."""
        for job in self._queue.past_deadline(now):
            waited_ms = round((now - job.arrived_at) * 1000)
            message = (
                f"the deadline of {job.request.deadline_ms} ms has passed: the request has waited {waited_ms} ms"
            )
            yield self._fail_job(job, DeadlineExceeded(message))

    def fail_all(self, error: Unavailable) -> Iterator[Failure]:
        """Fail every job, because the server stops or has no worker left: one in each step of the iterator."""
        while (job := self._queue.oldest) is not None:
            yield self._fail_job(job, error)

    # -- workers ---------------------------------------------------------------------------------------

    def worker_ready(self, name: str, facts: ModelFacts) -> None:
        """Add a worker, or replace the process that served under this name; its model is the newest one now."""
        self._take_back(name)
        if self._repeats is not None and facts.fingerprint != self.model:
            self._repeats.cache.clear()
        self.model = facts.fingerprint
        rate = RateEstimate(facts.tokens_per_s)
        self._workers[name] = WorkerLoad(name, facts.fingerprint, facts.max_batch_tokens, rate)
        self._sizes.learn(facts)

    def worker_changed(self, name: str, facts: ModelFacts) -> None:
        """Note the new speed of a worker that is ready."""
        if (worker := self._workers.get(name)) is not None:
            worker.rate = RateEstimate(facts.tokens_per_s)

    def worker_lost(self, name: str) -> list[Failure]:
        """Remove a worker that died and take back its batches; return the jobs that fail."""
        batches = self._take_back(name)
        for batch in batches:
            batch.is_suspect = True
        if len(batches) != 1:  # a worker computes its batches in turns, so it is not known which of them killed it
            return []
        alone = batches[0]
        alone.num_lost_workers += 1
        if alone.num_lost_workers < _MAX_LOST_WORKERS:
            return []
        self._to_send_again.popleft()
        error = WorkerFailed(f"the worker process died {_MAX_LOST_WORKERS} times while it computed this text")
        # One more lost worker is enough to split a half.
        return self._split(alone, error, num_lost_workers=_MAX_LOST_WORKERS - 1)

    def worker_progressed(self, name: str, num_forwards: int) -> None:
        """Note how many micro-batches a worker has computed since its start."""
        worker = self._workers.get(name)
        if worker is not None and num_forwards > worker.num_forwards:
            worker.num_forwards = num_forwards
            worker.progress_at = self._clock.now

    @property
    def outdated(self) -> list[str]:
        """The workers whose model is not the newest. They get no batches."""
        return [worker.name for worker in self._workers.values() if worker.model != self.model]

    def next_batch(self, name: str, now: float) -> Batch | None:
        """Return the batch that the worker should get now, or None."""
        worker = self._workers.get(name)
        if worker is None or worker.model != self.model:
            return None
        batch, only_large = None, worker.keeps_large_apart
        if self._queue.has_small and worker.can_take_urgent and not self._to_send_again:
            batch, only_large = self._merge_urgent(worker, now), False  # a text may be too long to be urgent
        if batch is None and worker.can_take(suspect=bool(self._to_send_again)):
            batch = self._next_to_send_again() or self._merge(worker, now, only_large=only_large)
        if batch is None:
            return None
        batch.has_large = any(slice_.job.is_large for slice_ in batch.slices)
        for slice_ in batch.slices:
            if slice_.job.begun_at is None:
                slice_.job.begun_at = now
        batch.given_at = now
        batch_id = next(self._batch_ids)
        worker.add(batch_id, batch, self._clock.now)
        return Batch(batch_id, [slice_.to_part() for slice_ in batch.slices])

    def next_batches(self, now: float) -> Iterable[tuple[str, Batch]]:
        """Yield (worker name, batch) until no worker gets another batch, the least loaded worker first."""
        progress = True
        while progress and self._has_texts:
            progress = False
            for worker in sorted(self._workers.values(), key=lambda w: len(w.in_flight)):
                if not self._has_texts:  # there may be many workers
                    return
                batch = self.next_batch(worker.name, now)
                if batch is not None:
                    progress = True
                    yield worker.name, batch

    @property
    def _has_texts(self) -> bool:
        """Whether there is something to send."""
        return bool(self._to_send_again or self._queue.has_waiting)

    def complete(self, name: str, result: Result, now: float) -> list[Job | Failure]:
        """Store the result of a batch; return the jobs that end with this batch.

        A wrong result counts as a failed batch, see `fail`.
        """
        worker = self._workers.get(name)
        if worker is None or result.batch_id not in worker.in_flight:
            return []
        slices = worker.in_flight[result.batch_id].slices
        if wrong := result_error(slices, result.part_results, worker.model):
            log.error("wrong result worker=%s id=%d error=%s", name, result.batch_id, wrong)
            return [*self.fail(name, result.batch_id, f"the worker returned a wrong result: {wrong}")]
        batch = worker.remove(result.batch_id)
        assert batch is not None
        worker.progress_at = self._clock.now
        for job in {slice_.job for slice_ in slices}:  # a batch may have several slices of a job
            job.tokenize_ms += result.tokenize_ms
            job.compute_ms += result.compute_ms
        ended: list[Job | Failure] = []
        for slice_, part_result in zip(slices, result.part_results, strict=True):
            try:
                end = self._store(slice_, part_result, worker.model)
            except Exception:  # the result is wrong in a way that was not checked: only this job must fail
                log.exception("cannot store a result worker=%s id=%d", name, result.batch_id)
                end = self._fail_job(slice_.job, WorkerFailed("the worker returned a wrong result"))
            if end is not None:
                ended.append(end)
            if self._repeats is not None:
                ended += self._share(slice_, part_result, worker.model)
        self._learn(worker, batch, result)
        return ended

    def traces(self, name: str, batch_id: int) -> TraceNames:
        """Return the names of the requests in a batch of a worker, for logs."""
        batch = self.in_flight(name, batch_id)
        return TraceNames() if batch is None else batch.traces

    def in_flight(self, name: str, batch_id: int) -> InFlightBatch | None:
        """Return a batch that a worker has; None if it does not have this batch."""
        worker = self._workers.get(name)
        return None if worker is None else worker.in_flight.get(batch_id)

    def fail(self, name: str, batch_id: int, message: str) -> list[Failure]:
        """Take back a batch that raised an error; return the jobs that fail."""
        worker = self._workers.get(name)
        batch = None if worker is None else worker.remove(batch_id)
        if batch is None:
            return []
        return self._split(batch, WorkerFailed(message), num_lost_workers=batch.num_lost_workers)

    def fail_in_flight(self, name: str, message: str) -> list[Failure]:
        """Take back all batches of a worker, because a result cannot be read; return the jobs that fail."""
        worker = self._workers.get(name)
        batch_ids = [] if worker is None else list(worker.in_flight)
        return [failure for batch_id in reversed(batch_ids) for failure in self.fail(name, batch_id, message)]

    def overdue(self, timeout_s: float) -> list[str]:
        """Return the workers that have a batch and have computed nothing for too long."""
        now = self._clock.now
        return [worker.name for worker in self._workers.values() if worker.is_overdue(now, timeout_s)]

    @property
    def idle(self) -> list[str]:
        """The workers that have no batch."""
        return [worker.name for worker in self._workers.values() if not worker.in_flight]

    # -- inside: batches -------------------------------------------------------------------------------

    def _next_to_send_again(self) -> InFlightBatch | None:
        while self._to_send_again:
            batch = self._to_send_again.popleft()
            batch.slices = self._needed(batch.slices)
            if batch.slices:
                return batch
        return None

    def _needed(self, slices: Sequence[Slice]) -> list[Slice]:
        """Return the slices that are still needed; the texts of the others are not in flight any more."""
        for slice_ in slices:
            if not slice_.is_needed:
                list(self._share(slice_, None))
        return [slice_ for slice_ in slices if slice_.is_needed]

    def _merge(self, worker: WorkerLoad, now: float, *, only_large: bool) -> InFlightBatch | None:
        """Return a batch of waiting texts; None if no text waits, or if the batch is still too small to send."""
        full = worker.full_batch_tokens
        waiting_tokens = self.num_waiting * self._estimate.tokens_per_text
        if worker.num_ordinary and waiting_tokens < min(worker.ordinary_tokens, full / 2):
            return None
        builder = BatchBuilder(
            full,
            self._max_batch_size,
            self._estimate.of_text,
            max_text_tokens=math.inf if worker.can_take_long else worker.longest_ordinary_tokens,
        )
        while self._fill(builder, now, only="large" if only_large else None):
            pass
        return InFlightBatch(builder.slices, builder.tokens) if builder.slices else None

    def _merge_urgent(self, worker: WorkerLoad, now: float) -> InFlightBatch | None:
        """Return a batch of small requests for a worker that has large ones; None if none of them fits."""
        builder = BatchBuilder(
            worker.full_batch_tokens,
            self._max_batch_size,
            self._estimate.of_text,
            max_text_tokens=worker.longest_ordinary_tokens,
        )
        while self._fill(builder, now, only="small"):
            pass
        return InFlightBatch(builder.slices, builder.tokens, is_urgent=True) if builder.slices else None

    def _fill(self, builder: BatchBuilder, now: float, *, only: Priority | None) -> bool:
        """Take waiting texts into a batch; return whether repeats were left out, so that others have room."""
        num_before = len(builder.slices)
        self._queue.fill(builder, only=only)
        if self._repeats is None:
            return False
        return builder.replace(num_before, self._repeats.begin(builder.slices[num_before:], now))

    def _split(self, batch: InFlightBatch, error: ServingError, *, num_lost_workers: int) -> list[Failure]:
        """Put the halves of a failed batch in front of the queue. If the batch has a single text, fail its job."""
        slices = self._needed(batch.slices)
        num_texts = sum(map(len, slices))
        if num_texts == 0:
            return []
        if num_texts == 1:
            failure = self._fail_job(slices[0].job, error)
            list(self._share(slices[0], None))
            return [failure]
        for half in reversed(halve(slices, num_texts // 2)):
            tokens = self._estimate.of_slices(half)
            self._to_send_again.appendleft(
                InFlightBatch(half, tokens, num_lost_workers, is_suspect=num_lost_workers > 0)
            )
        return []

    def _take_back(self, name: str) -> list[InFlightBatch]:
        """Remove a worker and put its batches in front of the queue; return these batches."""
        worker = self._workers.pop(name, None)
        batches = list(worker.in_flight.values()) if worker else []
        self._to_send_again.extendleft(reversed(batches))
        return batches

    def _learn(self, worker: WorkerLoad, batch: InFlightBatch, result: Result) -> None:
        computed = [
            (slice_.texts, part_result)
            for slice_, part_result in zip(batch.slices, result.part_results, strict=True)
            if isinstance(part_result, Vectors) and not part_result.errors  # texts with errors have no tokens
        ]
        if not computed:
            return
        num_tokens = sum(sum(vectors.num_tokens) for _, vectors in computed)
        if num_tokens >= worker.full_batch_tokens / 2 and result.busy_ms > 0:
            worker.rate.learn(num_tokens, result.busy_ms)
        self._estimate.learn(computed, num_tokens)

    # -- inside: repeated texts ------------------------------------------------------------------------

    def _share(self, slice_: Slice, part_result: PartResult | None, model: str = "") -> Iterator[Job | Failure]:
        """Give what a worker returned for a slice to the texts that follow it; yield the jobs that end.

        None: nothing was returned. Texts that get no vectors are sent to workers.
        """
        if self._repeats is None:
            return
        followers = self._repeats.end(slice_, part_result, model, is_newest=model == self.model)
        for text, vectors in followers.vectors:
            job = self._store(text, vectors, model)
            if job is not None:
                yield job
        left = [text for text in followers.left if text.is_needed]
        for text in self._repeats.begin(left, self._clock.now):  # the first one; equal ones follow it
            self._to_send_again.append(InFlightBatch([text], self._estimate.of_slices([text])))

    # -- inside: jobs ----------------------------------------------------------------------------------

    def _store(self, slice_: Slice, part_result: PartResult, model: str) -> Job | Failure | None:
        """Store what a worker returned for a slice; return its job if the job ends now."""
        job = slice_.job
        if not slice_.is_needed:
            return None
        if isinstance(part_result, Rejected):
            return self._fail_job(job, _error_in_request(part_result, slice_))
        if job.mixes_models(model):
            self._queue.restart(job)
            return None
        if (no_room := self.admission.reserve_result(job, part_result)) is not None:
            return self._fail_job(job, no_room)
        try:
            job.store(slice_.start, part_result, model)
        except MemoryError:
            log.exception("no memory for the vectors of %r", job)
            return self._fail_job(job, ServingError("the server has no memory for the vectors of this request"))
        if not job.is_done:
            return None
        self._queue.close(job)
        return job

    def _wait_ms(self, num_texts: int) -> int | None:
        """Return the estimated milliseconds until so many texts are computed; None if no worker is ready."""
        rate = self.tokens_per_s
        return max(1, round(num_texts * self._estimate.tokens_per_text / rate * 1000)) if rate else None

    def _fail_job(self, job: Job, error: ServingError) -> Failure:
        self._queue.close(job)
        return Failure(job, error)


def _error_in_request(rejected: Rejected, slice_: Slice) -> ServingError:
    """Return the error with the index that the text has in its request, instead of the index in its part."""
    if rejected.index is None:
        return rejected.error
    return type(rejected.error)(f"texts[{slice_.start + rejected.index}]: {rejected.error.message}")
