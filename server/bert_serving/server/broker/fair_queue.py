"""Jobs waiting for a worker, shared fairly among clients. Decides, does no I/O.

Each client has a clock that runs forward by the tokens it was served (start-time fair queueing, Goyal
et al. 1996); the client whose clock is furthest behind goes next. A client that joins starts at the
present time of the queue: it owes nothing, and it has saved up nothing.

Who is a client is not for this file to know: the jobs of one `turn` are.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from .job import Job, Slice, TextCost

# A flow keeps its turn for so many tokens: slices of a few texts would cost more to book than to encode.
_QUANTUM_TOKENS = 256.0


@dataclass(slots=True)
class _Flow:
    flow: bytes
    clock: float
    # By job_id. Not a deque: the flow of all unsubscribed clients may hold 100,000 jobs, any of which may end.
    jobs: OrderedDict[int, Job] = field(default_factory=OrderedDict)

    @property
    def first(self) -> Job:
        return next(iter(self.jobs.values()))


class FairQueue:
    """A queue of jobs from which slices are taken, token by token, fairly among the flows."""

    def __init__(self) -> None:
        self._clients: dict[bytes, _Flow] = {}
        self._heap: list[tuple[float, int, _Flow]] = []  # heap by clock
        self._now = 0.0
        self._left: dict[bytes, float] = {}  # clocks of clients that left ahead of the queue's time
        self._ticket = itertools.count()

    def __bool__(self) -> bool:
        self._skip_closed()
        return bool(self._heap)

    def push(self, job: Job) -> None:
        """Add a job behind the others of its client."""
        client = self._clients.get(job.flow)
        if client is None:
            clock = max(self._now, self._left.pop(job.flow, 0.0))
            client = self._clients[job.flow] = _Flow(job.flow, clock)
            self._push_flow(client)
        client.jobs[job.job_id] = job

    def discard(self, job: Job) -> None:
        """Take out a job that ended while it waited."""
        client = self._clients.get(job.flow)
        if client is None or client.jobs.pop(job.job_id, None) is None:
            return
        if not client.jobs:
            self._heap = [entry for entry in self._heap if entry[2] is not client]
            heapq.heapify(self._heap)
            self._requeue(client)

    def take(
        self, *, max_tokens: float, max_texts: int, cost: TextCost, at_least_one: bool = True
    ) -> tuple[list[Slice], float]:
        """Take texts worth at most `max_tokens`, but one at least if there is any; return them and their worth."""
        slices: list[Slice] = []
        room_tokens, room_texts = max_tokens, max_texts
        while room_texts > 0 and self:
            clock, _, client = self._heap[0]
            job = client.first
            quantum = min(room_tokens, self._lead(clock) + _QUANTUM_TOKENS)
            stop, tokens = job.reach(quantum, room_texts, cost)
            if tokens > room_tokens and (slices or not at_least_one):
                break
            slices.append(job.take(stop))
            room_tokens -= tokens
            room_texts -= len(slices[-1])
            self._advance(client, tokens)
            if room_tokens <= 0:
                break
        return slices, max_tokens - room_tokens

    def _lead(self, clock: float) -> float:
        """Return how far the first client is behind the second."""
        others = [entry[0] for entry in self._heap[1:3]]
        return min(others) - clock if others else float("inf")

    def _advance(self, client: _Flow, tokens: float) -> None:
        heapq.heappop(self._heap)
        self._now = client.clock
        client.clock += tokens
        if not client.first.is_waiting:
            client.jobs.popitem(last=False)
        self._requeue(client)

    def _skip_closed(self) -> None:
        """Pass over jobs that were cancelled or answered while they waited."""
        while self._heap and not self._heap[0][2].first.is_waiting:
            client = heapq.heappop(self._heap)[2]
            client.jobs.popitem(last=False)
            self._requeue(client)

    def _requeue(self, client: _Flow) -> None:
        if client.jobs:
            self._push_flow(client)
            return
        del self._clients[client.flow]
        if self._clients:
            self._left[client.flow] = client.clock
        else:  # everybody has been served: nobody owes anybody
            self._now = client.clock
            self._left.clear()
        if len(self._left) > 2 * len(self._clients) + 64:
            self._left = {flow: clock for flow, clock in self._left.items() if clock > self._now}

    def _push_flow(self, client: _Flow) -> None:
        heapq.heappush(self._heap, (client.clock, next(self._ticket), client))
