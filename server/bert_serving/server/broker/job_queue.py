"""Stores every open job; decides which waiting texts go to a worker first, and how many texts may wait.

Small requests (up to `priority_batch_size` texts) go first. Large requests get a quarter of every batch, so that
they do not starve. Among the small requests, and among the large ones, each flow gets an equal share of the
tokens. A flow is an identity that a client has subscribed to, or the flow that a gateway names in a request. All
unsubscribed clients are one flow, because a client can invent any number of identities.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import replace

from bert_serving.protocol import EncodeRequest, PayloadTooLarge

from .batching import BatchBuilder
from .fair_queue import FairQueue
from .job import Job

_LARGE_SHARE = 0.25
_UNSUBSCRIBED = b""  # the flow that all unsubscribed clients share


class JobQueue:
    """Owns every job from its arrival to its end. For the arguments, see Scheduler.

    num_waiting: number of texts that were not given to a worker yet. open_bytes: bytes of all open requests, as
    received.
    """

    def __init__(
        self,
        *,
        queue_capacity: int,
        queue_bytes: int,
        priority_batch_size: int,
        max_seq_len: int,
        show_tokens: bool,
    ) -> None:
        self._queue_capacity = queue_capacity
        self._queue_bytes = queue_bytes
        self._priority_batch_size = priority_batch_size
        self._max_seq_len = max_seq_len
        self._show_tokens = show_tokens
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._small = FairQueue()
        self._large = FairQueue()
        self._owed_to_large = 0.0  # the share of a batch that large requests should have got but did not get
        self._unsubscribed: dict[bytes, dict[int, Job]] = {}  # by identity and job_id
        self._by_request: dict[tuple[bytes, bytes], Job] = {}  # by identity and request_id; the latest, if equal
        self._deadlines: list[tuple[float, int]] = []  # heap of (time, job_id)
        self.num_waiting = 0
        self.open_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def jobs(self) -> list[Job]:
        """All open jobs, the oldest first."""
        return list(self._jobs.values())

    def oldest_age_s(self, now: float) -> float:
        """Return the age of the oldest request that waits for its first batch; 0 if there is none."""
        return max((now - job.arrived_at for job in self._jobs.values() if job.begun_at is None), default=0.0)

    # -- arrival ---------------------------------------------------------------------------------------

    def full_because(self, num_texts: int, num_bytes: int) -> str | None:
        """Return why there is no room for a request, or None. Raises PayloadTooLarge if it has too many texts."""
        if num_texts > self._queue_capacity:
            raise PayloadTooLarge(f"a request holds at most {self._queue_capacity} texts, got {num_texts}")
        if self.num_waiting + num_texts > self._queue_capacity:
            return f"{self.num_waiting} texts wait, the limit is {self._queue_capacity}"
        # If no other request is open, a request may exceed this limit: Ports limits the size of each message.
        if self._jobs and self.open_bytes + num_bytes > self._queue_bytes:
            return f"requests of {self.open_bytes} bytes are open, the limit is {self._queue_bytes}"
        return None

    def excess_texts(self, num_texts: int) -> int:
        """Return how many texts must leave the queue before `num_texts` more texts fit; at least 1."""
        return max(1, self.num_waiting + num_texts - self._queue_capacity)

    def add(self, request: EncodeRequest, now: float, *, num_bytes: int, is_unsubscribed: bool) -> Job:
        """Add a request as a job."""
        job = Job(
            next(self._numbers),
            request,
            now,
            _flow_of(request, is_unsubscribed=is_unsubscribed),
            replace(request.options, show_tokens=True) if self._show_tokens else request.options,
            num_bytes=num_bytes,
            max_text_tokens=math.inf if request.options.long_text == "chunk" else self._max_seq_len,
        )
        self._jobs[job.job_id] = job
        self._by_request[request.identity, request.request_id] = job
        if job.flow == _UNSUBSCRIBED:
            self._unsubscribed.setdefault(request.identity, {})[job.job_id] = job
        self.open_bytes += num_bytes
        self.num_waiting += len(request.texts)
        self._queue_of(job).push(job)
        if request.deadline_ms is not None:
            self._forget_old_deadlines()
            heapq.heappush(self._deadlines, (now + request.deadline_ms / 1000, job.job_id))
        return job

    def client_subscribed(self, identity: bytes) -> None:
        """Move the jobs of an identity to their own flow, because a client has subscribed to the identity."""
        for job in self._unsubscribed.pop(identity, {}).values():
            queue = self._queue_of(job)
            queue.discard(job)
            job.flow = _flow_of(job.request, is_unsubscribed=False)
            if job.is_waiting:
                queue.push(job)

    # -- to the workers --------------------------------------------------------------------------------

    def fill(self, builder: BatchBuilder) -> None:
        """Move waiting texts into a batch, up to its limits."""
        if self._small and self._large:
            # A quarter of a batch may be less than one text. What large requests did not get is added to their
            # share of the next batch.
            self._owed_to_large = min(1.0, self._owed_to_large + _LARGE_SHARE)
            self._owed_to_large -= min(self._owed_to_large, builder.take(self._large, self._owed_to_large))
        builder.take(self._small)
        builder.take(self._large)
        self.num_waiting -= builder.num_texts

    # -- end -------------------------------------------------------------------------------------------

    def jobs_of(self, identity: bytes) -> list[Job]:
        """Return the open jobs of an identity."""
        return [job for job in self._jobs.values() if job.identity == identity]

    def job_of(self, identity: bytes, request_id: bytes) -> Job | None:
        """Return the open job of a request, or None. If several requests have this id, return the latest."""
        return self._by_request.get((identity, request_id))

    def past_deadline(self, now: float) -> list[Job]:
        """Return the open jobs whose deadline has passed. Each job is returned only once."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = self._jobs.get(heapq.heappop(self._deadlines)[1])
            if job is not None:
                found.append(job)
        return found

    def close(self, job: Job) -> None:
        """End a job that is done, failed, expired or cancelled."""
        self.num_waiting -= job.num_waiting
        self.open_bytes -= job.num_bytes
        if job.is_waiting:
            self._queue_of(job).discard(job)
        if job.flow == _UNSUBSCRIBED:
            self._forget_unsubscribed(job)
        job.is_open = False
        del self._jobs[job.job_id]
        key = job.identity, job.request.request_id
        if self._by_request.get(key) is job:
            del self._by_request[key]

    def _forget_unsubscribed(self, job: Job) -> None:
        jobs = self._unsubscribed[job.identity]
        del jobs[job.job_id]
        if not jobs:
            del self._unsubscribed[job.identity]

    def _forget_old_deadlines(self) -> None:
        """If most of the deadlines belong to jobs that have ended, drop those deadlines."""
        if len(self._deadlines) > 2 * len(self._jobs) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._jobs]
            heapq.heapify(self._deadlines)

    def _queue_of(self, job: Job) -> FairQueue:
        return self._small if len(job.texts) <= self._priority_batch_size else self._large


def _flow_of(request: EncodeRequest, *, is_unsubscribed: bool) -> bytes:
    """Return the key of a request's flow. The prefixes keep an identity from equal to a gateway's flow."""
    if request.flow is not None:
        return b"gateway:" + request.flow.encode()
    return _UNSUBSCRIBED if is_unsubscribed else b"identity:" + request.identity
