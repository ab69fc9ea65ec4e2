"""Stores every open job, and decides which waiting texts go to a worker first.

Small requests (up to `priority_batch_size` texts) go first. Large requests get a quarter of a batch that has both,
so that they do not starve; scheduler.py says when batches have only one kind. Among the small requests, and among
the large ones, each flow gets an equal share of the tokens. A flow is an identity that a client has subscribed to,
or the flow that a gateway names in a request. All unsubscribed clients are one flow, because a client can invent
any number of identities.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from bert_serving.protocol import EncodeRequest

from .account import NoRoom, Reservation
from .batching import BatchBuilder
from .fair_queue import FairQueue
from .job import PRIORITIES, Job, Priority

_LARGE_SHARE = 0.25
#: The flow that all unsubscribed clients share.
UNSUBSCRIBED = b""


class JobQueue:
    """Owns every job from its arrival to its end. For the arguments, see Scheduler."""

    def __init__(self, *, priority_batch_size: int, max_seq_len: int, show_tokens: bool) -> None:
        self._priority_batch_size = priority_batch_size
        self._max_seq_len = max_seq_len
        self._show_tokens = show_tokens
        # An ordinary dict takes longer and longer to find its first item when items are removed from its front.
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._numbers = itertools.count(1)
        self._small = FairQueue()
        self._large = FairQueue()
        self._owed_to_large = 0.0  # the share of a batch that large requests should have got but did not get
        # By priority, the oldest first; some of them may have begun.
        self._not_begun: dict[Priority, OrderedDict[int, Job]] = {each: OrderedDict() for each in PRIORITIES}
        self._by_identity: dict[bytes, dict[int, Job]] = {}
        self._by_request: dict[tuple[bytes, bytes], Job] = {}  # by identity and request_id; the latest, if equal
        self._deadlines: list[tuple[float, int]] = []  # heap of (time, job_id)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def oldest(self) -> Job | None:
        """The open job that was added first; None if there is no open job."""
        return next(iter(self._jobs.values()), None)

    def oldest_age_s(self, now: float, priority: Priority) -> float:
        """Return the age of the oldest request that waits for its first batch; 0 if there is none."""
        not_begun = self._not_begun[priority]
        while not_begun:
            job = next(iter(not_begun.values()))
            if job.begun_at is None:
                return now - job.arrived_at
            not_begun.popitem(last=False)
        return 0.0

    @property
    def next_deadline(self) -> float | None:
        """When the next deadline passes; None if no request has a deadline. The request may have ended already."""
        return self._deadlines[0][0] if self._deadlines else None

    # -- arrival ---------------------------------------------------------------------------------------

    def priority_of(self, request: EncodeRequest) -> Priority:
        """Return whether a request is small or large."""
        return "large" if len(request.texts) > self._priority_batch_size else "small"

    def add(
        self,
        request: EncodeRequest,
        now: float,
        *,
        flow: bytes,
        num_bytes: int,
        held: Reservation,
        waiting: Reservation,
    ) -> Job:
        """Add a request as a job. held, waiting: its reservations; num_bytes: see Job."""
        job = Job(
            next(self._numbers),
            request,
            now,
            flow,
            held,
            waiting,
            options=replace(request.options, show_tokens=True) if self._show_tokens else request.options,
            num_bytes=num_bytes,
            max_text_tokens=math.inf if request.options.long_text == "chunk" else self._max_seq_len,
            priority=self.priority_of(request),
        )
        self._jobs[job.job_id] = self._not_begun[job.priority][job.job_id] = job
        self._by_request[request.identity, request.request_id] = job
        self._by_identity.setdefault(request.identity, {})[job.job_id] = job
        self._queue_of(job).push(job)
        if request.deadline_ms is not None:
            self._forget_old_deadlines()
            heapq.heappush(self._deadlines, (now + request.deadline_ms / 1000, job.job_id))
        return job

    def client_subscribed(self, identity: bytes) -> Iterator[None]:
        """Move the jobs of an identity to their own flow, one by one, because a client has subscribed to it."""
        for job in list(self._by_identity.get(identity, {}).values()):
            if job.is_open and job.flow == UNSUBSCRIBED:
                self._move(job, flow_of(identity, job.request.flow, is_unsubscribed=False))
            yield

    def _move(self, job: Job, flow: bytes) -> None:
        self._queue_of(job).discard(job)
        job.flow = flow
        with suppress(NoRoom):  # then the flow of the unsubscribed clients holds them until the job ends
            job.reservation.move_to(flow)
            job.waiting.move_to(flow)
        if job.is_waiting:
            self._queue_of(job).push(job)

    # -- to the workers --------------------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        """Whether a text waits for a worker."""
        return bool(self._small or self._large)

    @property
    def has_small(self) -> bool:
        """Whether a text of a small request waits for a worker."""
        return bool(self._small)

    def fill(self, builder: BatchBuilder, *, only: Priority | None = None) -> None:
        """Move waiting texts into a batch, up to its limits. only: of requests of this kind."""
        if only is not None:
            builder.take(self._small if only == "small" else self._large)
            return
        if self._small and self._large:
            # A quarter of a batch may be less than one text. What large requests did not get is added to their
            # share of the next batch. A small request's text that fills a batch alone leaves them nothing, until a
            # whole batch is owed to them.
            self._owed_to_large = min(1.0, self._owed_to_large + _LARGE_SHARE)
            if self._owed_to_large == 1.0 or self._small.first_tokens(builder.cost) <= builder.max_tokens:
                self._owed_to_large -= min(self._owed_to_large, builder.take(self._large, self._owed_to_large))
        builder.take(self._small)
        builder.take(self._large)

    def skip(self, job: Job, num_texts: int) -> None:
        """Note that the first texts of a job need not be sent to a worker."""
        if num_texts == 0:
            return
        job.take(num_texts)
        if not job.is_waiting:
            self._queue_of(job).discard(job)

    def restart(self, job: Job) -> None:
        """Drop the vectors of an open job; all its texts wait again."""
        was_waiting = job.is_waiting
        job.restart()
        with suppress(
            NoRoom
        ):  # it was accepted once, so it may wait again; then some of its texts are not counted
            job.waiting.resize(job.num_waiting)
        if not was_waiting:
            self._queue_of(job).push(job)

    # -- end -------------------------------------------------------------------------------------------

    def take_jobs_of(self, identity: bytes) -> list[Job]:
        """Return the open jobs of an identity; jobs that are added later are not among them."""
        return list(self._by_identity.pop(identity, {}).values())

    def job_of(self, identity: bytes, request_id: bytes) -> Job | None:
        """Return the open job of a request, or None. If several requests have this id, return the latest."""
        return self._by_request.get((identity, request_id))

    def past_deadline(self, now: float) -> Iterator[Job]:
        """Yield the open jobs whose deadline has passed. Each job is yielded only once."""
        while self._deadlines and self._deadlines[0][0] <= now:
            job = self._jobs.get(heapq.heappop(self._deadlines)[1])
            if job is not None:
                yield job

    def close(self, job: Job) -> None:
        """End a job that is done, failed, expired or cancelled.

        This is the place where reservations end, with one exception: the bytes of a job that is done stay reserved
        for its reply.
        """
        if job.is_waiting:
            self._queue_of(job).discard(job)
        job.is_open = False
        job.waiting.release()
        if not job.is_done:
            job.reservation.release()
        del self._jobs[job.job_id]
        self._not_begun[job.priority].pop(job.job_id, None)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """Remove a job from the indices, if it is still there."""
        key = job.identity, job.request.request_id
        if self._by_request.get(key) is job:
            del self._by_request[key]
        of_identity = self._by_identity.get(job.identity, {})
        if of_identity.pop(job.job_id, None) is not None and not of_identity:
            del self._by_identity[job.identity]

    def _forget_old_deadlines(self) -> None:
        """If most of the deadlines belong to jobs that have ended, drop those deadlines."""
        if len(self._deadlines) > 2 * len(self._jobs) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._jobs]
            heapq.heapify(self._deadlines)

    def _queue_of(self, job: Job) -> FairQueue:
        return self._large if job.is_large else self._small


def flow_of(identity: bytes, gateways_name: str | None, *, is_unsubscribed: bool) -> bytes:
    """Return the key of a request's flow. gateways_name: the flow that a gateway names in the request, or None.

    The prefixes keep an identity from being equal to a gateway's flow.
    """
    if gateways_name is not None:
        return b"gateway:" + gateways_name.encode()
    return UNSUBSCRIBED if is_unsubscribed else b"identity:" + identity
