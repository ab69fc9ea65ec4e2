"""Which texts go to which worker, and when. Decides, does no I/O, and reads no clock.

Rules of this file:
- A batch is what waits when a worker can take it. No timer ever holds a text back: under load batches
  grow by themselves, and an idle server answers at once.
- A worker holds two batches at most, one in work and one ahead. The one ahead is only sent when it is
  worth as much as the one in work, or half a full batch: until then waiting costs nothing and lets it grow.
- A batch is bounded by tokens and sized by time: what its worker computes in BATCH_S seconds. That is also
  the longest that an urgent text waits behind one batch.
- Requests of up to `priority_batch_size` texts go first; larger ones keep a quarter of every batch, so
  that nothing starves. Within each kind, clients share by tokens. Strangers, to whom nobody listens yet,
  share as one client: identities cost nothing to make up.
- What a lost worker held goes back to the front, and is a suspect: it travels alone. Suspects that lose a
  second worker, and batches that raise an error, are split until the guilty text is alone; only its
  request fails.
- Every job ends exactly once: done, failed, expired or cancelled. What comes back for it later is ignored.

It knows nothing of sockets, processes or models. All times are monotonic seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bert_serving.protocol import (
    Batch,
    DeadlineExceeded,
    EncodeRequest,
    Overloaded,
    PayloadTooLarge,
    Rejected,
    Result,
    ServingError,
    Text,
    Unavailable,
    Vectors,
    WorkerFailed,
)

from .batching import BatchBuilder, InFlightBatch, halve
from .fair_queue import FairQueue
from .job import Job, Slice

BATCH_S = 0.08  # the best micro-batch for a CPU's caches and a full one for a GPU, measured on both
_MIN_BATCH_TOKENS = 256
_LARGE_SHARE = 0.25
_MAX_IN_FLIGHT = 2
_MAX_LOST_WORKERS = 2
_UNSUBSCRIBED = b""  # their turn; no identity is empty
_SMOOTHING = 0.2  # weight of the newest batch in the running estimates
_ESTIMATE_TOKENS = 4096  # a batch of fewer tokens weighs less in the estimate of tokens from text length


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that ended without vectors."""

    job: Job
    error: ServingError


@dataclass(slots=True)
class _Worker:
    name: str
    max_batch_tokens: int
    tokens_per_s: float
    floor_tokens_per_s: float
    in_flight: dict[int, InFlightBatch] = field(default_factory=dict)

    @property
    def budget(self) -> float:
        """Tokens of a full batch."""
        return min(self.max_batch_tokens, max(_MIN_BATCH_TOKENS, self.tokens_per_s * BATCH_S))

    def can_take(self, *, suspect: bool) -> bool:
        """Return whether the worker has room; a suspect needs it for itself."""
        if suspect or any(parcel.is_suspect for parcel in self.in_flight.values()):
            return not self.in_flight
        return len(self.in_flight) < _MAX_IN_FLIGHT


class Scheduler:
    """Owns every job between its arrival and its end.

    queue_capacity: most texts that wait, and most in one request. queue_bytes: most bytes of requests that
    are not answered yet, as they came over the wire. max_batch_size: most texts in a batch.
    priority_batch_size: requests of up to so many texts overtake larger ones. max_seq_len: what the
    estimate of a text's tokens is capped at. result_bytes: most bytes of one request's vectors.
    """

    def __init__(
        self,
        *,
        queue_capacity: int,
        queue_bytes: int,
        max_batch_size: int,
        priority_batch_size: int,
        max_seq_len: int,
        show_tokens: bool = False,
        result_bytes: int = 1 << 30,
    ) -> None:
        self._queue_capacity = queue_capacity
        self._queue_bytes = queue_bytes
        self._max_batch_size = max_batch_size
        self._priority_batch_size = priority_batch_size
        self._max_seq_len = max_seq_len
        self._show_tokens = show_tokens
        self._result_bytes = result_bytes
        self._jobs: dict[int, Job] = {}
        self._small = FairQueue()
        self._large = FairQueue()
        self._unsubscribed: dict[bytes, dict[int, Job]] = {}  # by identity and job_id
        self._again: deque[InFlightBatch] = deque()
        self._deadlines: list[tuple[float, int]] = []
        self._workers: dict[str, _Worker] = {}
        self._numbers = itertools.count(1)
        self._chars_per_token = 4.0
        self._tokens_per_text = 16.0
        self._owed_to_large = 0.0  # part of a batch that larger requests were denied
        self.num_waiting = 0
        self.open_bytes = 0

    def __repr__(self) -> str:
        in_flight = sum(len(w.in_flight) for w in self._workers.values())
        return (
            f"<Scheduler jobs={len(self._jobs)} waiting={self.num_waiting} "
            f"workers={len(self._workers)} in_flight={in_flight}>"
        )

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    def oldest_age_s(self, now: float) -> float:
        """Return for how long the oldest request has waited for its first worker; 0 where none waits."""
        return max((now - job.arrived_at for job in self._jobs.values() if job.begun_at is None), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        """Measured rate of all workers together."""
        return sum(worker.tokens_per_s for worker in self._workers.values())

    # -- jobs ------------------------------------------------------------------------------------------

    def submit(
        self, request: EncodeRequest, now: float, *, num_bytes: int = 0, is_unsubscribed: bool = False
    ) -> Job:
        """Queue a request that came in `num_bytes`. Raises PayloadTooLarge or Overloaded.

        is_unsubscribed: nobody has subscribed to its identity; `claim` tells when somebody does.
        """
        num_texts = len(request.texts)
        if num_texts > self._queue_capacity:
            raise PayloadTooLarge(f"a request holds at most {self._queue_capacity} texts, got {num_texts}")
        if self.num_waiting + num_texts > self._queue_capacity:
            raise Overloaded(
                f"the queue is full: {self.num_waiting} texts wait, {self._queue_capacity} may",
                retry_after_ms=self._retry_after_ms(num_texts),
            )
        if self._jobs and self.open_bytes + num_bytes > self._queue_bytes:
            raise Overloaded(
                f"the queue is full: {self.open_bytes} bytes of requests wait, {self._queue_bytes} may",
                retry_after_ms=self._retry_after_ms(num_texts),
            )
        deadline = None if request.deadline_ms is None else now + request.deadline_ms / 1000
        job = Job(
            next(self._numbers),
            request,
            now,
            _UNSUBSCRIBED if is_unsubscribed else request.identity,
            replace(request.options, show_tokens=True) if self._show_tokens else request.options,
            num_bytes=num_bytes,
            max_text_tokens=math.inf if request.options.long_text == "chunk" else self._max_seq_len,
        )
        self._jobs[job.job_id] = job
        if is_unsubscribed:
            self._unsubscribed.setdefault(request.identity, {})[job.job_id] = job
        self.open_bytes += num_bytes
        self.num_waiting += num_texts
        self._queue_of(job).push(job)
        if deadline is not None:
            self._forget_old_deadlines()
            heapq.heappush(self._deadlines, (deadline, job.job_id))
        return job

    def claim(self, identity: bytes) -> None:
        """Give the jobs of a stranger who has subscribed a flow of their own: a request is often faster."""
        for job in self._unsubscribed.pop(identity, {}).values():
            queue = self._queue_of(job)
            queue.discard(job)
            job.flow = identity
            if job.is_waiting:
                queue.push(job)

    def cancel(self, identity: bytes) -> list[Job]:
        """End the jobs of a client that went away; return them."""
        jobs = [job for job in self._jobs.values() if job.client == identity]
        for job in jobs:
            self._close(job)
        return jobs

    def expire(self, now: float) -> list[Failure]:
        """End the jobs whose deadline has passed."""
        failures = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = self._jobs.get(heapq.heappop(self._deadlines)[1])
            if job is not None:
                waited_ms = round((now - job.arrived_at) * 1000)
                failures.append(
                    self._fail_job(job, DeadlineExceeded(f"not done within its deadline, {waited_ms} ms"))
                )
        return failures

    def fail_all(self, reason: str) -> list[Failure]:
        """End every job: the server goes down or has no worker left."""
        return [self._fail_job(job, Unavailable(reason)) for job in list(self._jobs.values())]

    # -- workers ---------------------------------------------------------------------------------------

    def worker_ready(self, name: str, facts: Mapping[str, Any]) -> list[Failure]:
        """Add a worker, or note that it is there again.

        facts: max_batch_tokens, and tokens_per_s as measured at its warm-up.
        """
        failures = self.worker_lost(name)  # what it held before it started anew is lost with it
        rate = float(facts["tokens_per_s"])
        # Small batches run at a lower rate. Were the estimate free to follow them down, batches would
        # shrink with it and never grow again.
        self._workers[name] = _Worker(name, int(facts["max_batch_tokens"]), rate, rate / 4)
        return failures

    def worker_lost(self, name: str) -> list[Failure]:
        """Take a worker out and its batches back; return the jobs that will not be tried again."""
        worker = self._workers.pop(name, None)
        failures: list[Failure] = []
        for parcel in reversed(worker.in_flight.values() if worker else ()):
            parcel.num_lost_workers += 1
            if parcel.num_lost_workers >= _MAX_LOST_WORKERS:
                error = WorkerFailed(f"the model died on this text, {_MAX_LOST_WORKERS} times")
                # The next worker that a half loses proves it guilty.
                failures += self._isolate(parcel, error, _MAX_LOST_WORKERS - 1)
            else:
                self._again.appendleft(parcel)
        return failures

    def next_batch(self, name: str, now: float) -> Batch | None:
        """Return what the worker should get now, if anything."""
        worker = self._workers.get(name)
        if worker is None or not worker.can_take(suspect=bool(self._again)):
            return None
        parcel = self._next_again() or self._merge(worker)
        if parcel is None:
            return None
        parcel.sent_at = now
        for part in parcel.slices:
            if part.job.begun_at is None:
                part.job.begun_at = now
        batch_id = next(self._numbers)
        worker.in_flight[batch_id] = parcel
        return Batch(batch_id, [part.part for part in parcel.slices])

    def next_batches(self, now: float) -> Iterable[tuple[str, Batch]]:
        """Yield (worker name, batch) until no worker can take more, the least loaded worker first."""
        progress = True
        while progress:
            progress = False
            for worker in sorted(self._workers.values(), key=lambda w: len(w.in_flight)):
                batch = self.next_batch(worker.name, now)
                if batch is not None:
                    progress = True
                    yield worker.name, batch

    def complete(self, name: str, result: Result, now: float) -> list[Job | Failure]:
        """Take a worker's result; return the jobs that end with it."""
        parcel = self._land(name, result.batch_id)
        if parcel is None:
            return []
        for ahead in self._workers[name].in_flight.values():
            ahead.sent_at = now  # its turn begins now
        self._learn(self._workers[name], parcel, result)
        ended: list[Job | Failure] = []
        for part, outcome in zip(parcel.slices, result.outcomes, strict=True):
            job = part.job
            if not job.is_open:
                continue
            if isinstance(outcome, Rejected):
                ended.append(self._fail_job(job, _in_its_request(outcome, part)))
                continue
            if job.result.bytes_with(outcome) > self._result_bytes:
                ended.append(self._fail_job(job, self._too_large()))
                continue
            job.fill(part.start, outcome)
            job.tokenize_ms += result.tokenize_ms
            job.compute_ms += result.compute_ms
            if job.is_done:
                self._close(job)
                ended.append(job)
        return ended

    def fail(self, name: str, batch_id: int, message: str) -> list[Failure]:
        """Take back a batch that raised an error; return the jobs that are to blame."""
        parcel = self._land(name, batch_id)
        return [] if parcel is None else self._isolate(parcel, WorkerFailed(message), parcel.num_lost_workers)

    def overdue(self, now: float, timeout_s: float) -> list[str]:
        """Return the workers whose oldest batch has been with them for longer than the timeout.

        A long text that is read whole is one batch, and has the time that it should take beside the timeout.
        """
        late = []
        for worker in self._workers.values():
            oldest = min(worker.in_flight.values(), key=lambda parcel: parcel.sent_at, default=None)
            if oldest is None:
                continue
            expected_s = max(0.0, oldest.tokens - worker.max_batch_tokens) / worker.floor_tokens_per_s
            if now - oldest.sent_at > timeout_s + expected_s:
                late.append(worker.name)
        return late

    # -- inside ----------------------------------------------------------------------------------------

    def _next_again(self) -> InFlightBatch | None:
        while self._again:
            parcel = self._again.popleft()
            parcel.slices = [part for part in parcel.slices if part.job.is_open]
            if parcel.slices:
                return parcel
        return None

    def _merge(self, worker: _Worker) -> InFlightBatch | None:
        """Return what waits, up to a full batch, or None where it is better to let it grow."""
        if worker.in_flight:
            in_work = sum(parcel.tokens for parcel in worker.in_flight.values())
            if self._waiting_tokens < min(in_work, worker.budget / 2):
                return None
        filling = BatchBuilder(worker.budget, self._max_batch_size, self._cost)
        if self._small and self._large:
            # What is owed is carried over: a share may be less than one text.
            self._owed_to_large = min(1.0, self._owed_to_large + _LARGE_SHARE)
            self._owed_to_large -= min(self._owed_to_large, filling.take(self._large, self._owed_to_large))
        filling.take(self._small)
        filling.take(self._large)
        if not filling.slices:
            return None
        self.num_waiting -= filling.num_texts
        return InFlightBatch(filling.slices, filling.tokens)

    @property
    def _waiting_tokens(self) -> float:
        return self.num_waiting * self._tokens_per_text

    def _isolate(self, parcel: InFlightBatch, error: ServingError, num_lost: int) -> list[Failure]:
        """Halve a parcel that failed and put the halves in front, or fail the job of its only text."""
        slices = [part for part in parcel.slices if part.job.is_open]
        num_texts = sum(map(len, slices))
        if num_texts == 0:
            return []
        if num_texts == 1:
            return [self._fail_job(slices[0].job, error)]
        for half in reversed(halve(slices, num_texts // 2)):
            self._again.appendleft(InFlightBatch(half, self._tokens(half), num_lost))
        return []

    def _forget_old_deadlines(self) -> None:
        """Drop the deadlines of jobs that ended in time, once they are the larger part."""
        if len(self._deadlines) > 2 * len(self._jobs) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._jobs]
            heapq.heapify(self._deadlines)

    def _land(self, name: str, batch_id: int) -> InFlightBatch | None:
        worker = self._workers.get(name)
        return None if worker is None else worker.in_flight.pop(batch_id, None)

    def _learn(self, worker: _Worker, parcel: InFlightBatch, result: Result) -> None:
        """Correct the estimates by what a batch really held and took."""
        done = [
            (part.texts, outcome)
            for part, outcome in zip(parcel.slices, result.outcomes, strict=True)
            if isinstance(outcome, Vectors)
        ]
        if not done:
            return
        tokens = sum(sum(vectors.num_tokens) for _, vectors in done)
        if tokens >= worker.budget / 2 and result.compute_ms > 0:
            rate = tokens / result.compute_ms * 1000
            worker.tokens_per_s += _SMOOTHING * (rate - worker.tokens_per_s)
            worker.tokens_per_s = max(worker.tokens_per_s, worker.floor_tokens_per_s)
        num_texts = sum(len(texts) for texts, _ in done)
        self._tokens_per_text += _SMOOTHING * (tokens / num_texts - self._tokens_per_text)
        whole = [
            (len(text), n)
            for texts, vectors in done
            for i, (text, n) in enumerate(zip(texts, vectors.num_tokens, strict=True))
            if i not in vectors.truncated and isinstance(text, str)
        ]
        chars, words = sum(c for c, _ in whole), sum(n for _, n in whole) - 2 * len(whole)
        if words > 0:
            # Weighted by tokens: one odd text, a long word that became one token, must not turn it round.
            weight = min(_SMOOTHING, words / _ESTIMATE_TOKENS)
            self._chars_per_token += weight * (chars / words - self._chars_per_token)

    def _cost(self, text: Text) -> float:
        if isinstance(text, list):
            return len(text) + 2
        num_chars = len(text) if isinstance(text, str) else len(text["text"]) + len(text["text_pair"])
        return num_chars / self._chars_per_token + 2

    def _tokens(self, slices: Iterable[Slice]) -> float:
        return sum(part.job.tokens_of(text, self._cost) for part in slices for text in part.texts)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"the vectors of a request may have {self._result_bytes >> 20} MiB, these have more: send fewer texts"
        )

    def _fail_job(self, job: Job, error: ServingError) -> Failure:
        self._close(job)
        return Failure(job, error)

    def _close(self, job: Job) -> None:
        self.num_waiting -= job.num_waiting
        self.open_bytes -= job.num_bytes
        if job.is_waiting:
            self._queue_of(job).discard(job)
        if job.flow == _UNSUBSCRIBED:
            self._forget_unsubscribed(job)
        job.is_open = False
        del self._jobs[job.job_id]

    def _forget_unsubscribed(self, job: Job) -> None:
        jobs = self._unsubscribed[job.client]
        del jobs[job.job_id]
        if not jobs:
            del self._unsubscribed[job.client]

    def _queue_of(self, job: Job) -> FairQueue:
        return self._small if len(job.texts) <= self._priority_batch_size else self._large

    def _retry_after_ms(self, num_texts: int) -> int:
        """Return when there will be room for the texts, at the measured rate."""
        excess = max(1, self.num_waiting + num_texts - self._queue_capacity)
        rate = self.tokens_per_s
        return 1000 if rate == 0 else max(1, round(excess * self._tokens_per_text / rate * 1000))


def _in_its_request(rejected: Rejected, part: Slice) -> ServingError:
    """Return the error with the number of the text at fault, as its sender counts."""
    if rejected.index is None:
        return rejected.error
    return type(rejected.error)(f"texts[{part.start + rejected.index}]: {rejected.error.message}")
