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

# A client keeps its turn for so many tokens: slices of a few texts would cost more to book than to encode.
_QUANTUM_TOKENS = 256.0


@dataclass(slots=True)
class _Client:
    turn: bytes
    clock: float
    # By job_id. Not a deque: the turn that strangers share may hold 100,000 jobs, and any of them may end.
    jobs: OrderedDict[int, Job] = field(default_factory=OrderedDict)

    @property
    def first(self) -> Job:
        return next(iter(self.jobs.values()))


class FairQueue:
    """A queue of jobs from which slices are taken, token by token, in turn of the clients."""

    def __init__(self) -> None:
        self._clients: dict[bytes, _Client] = {}
        self._turns: list[tuple[float, int, _Client]] = []  # heap by clock
        self._now = 0.0
        self._left: dict[bytes, float] = {}  # clocks of clients that left ahead of the queue's time
        self._ticket = itertools.count()

    def __bool__(self) -> bool:
        self._skip_closed()
        return bool(self._turns)

    def push(self, job: Job) -> None:
        """Add a job behind the others of its client."""
        client = self._clients.get(job.turn)
        if client is None:
            clock = max(self._now, self._left.pop(job.turn, 0.0))
            client = self._clients[job.turn] = _Client(job.turn, clock)
            self._push_turn(client)
        client.jobs[job.job_id] = job

    def discard(self, job: Job) -> None:
        """Take out a job that ended while it waited."""
        client = self._clients.get(job.turn)
        if client is None or client.jobs.pop(job.job_id, None) is None:
            return
        if not client.jobs:
            self._turns = [turn for turn in self._turns if turn[2] is not client]
            heapq.heapify(self._turns)
            self._requeue(client)

    def take(
        self, *, max_tokens: float, max_texts: int, cost: TextCost, at_least_one: bool = True
    ) -> tuple[list[Slice], float]:
        """Take texts worth at most `max_tokens`, but one at least if there is any; return them and their worth."""
        slices: list[Slice] = []
        room_tokens, room_texts = max_tokens, max_texts
        while room_texts > 0 and self:
            clock, _, client = self._turns[0]
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
        others = [turn[0] for turn in self._turns[1:3]]
        return min(others) - clock if others else float("inf")

    def _advance(self, client: _Client, tokens: float) -> None:
        heapq.heappop(self._turns)
        self._now = client.clock
        client.clock += tokens
        if not client.first.is_waiting:
            client.jobs.popitem(last=False)
        self._requeue(client)

    def _skip_closed(self) -> None:
        """Pass over jobs that were cancelled or answered while they waited."""
        while self._turns and not self._turns[0][2].first.is_waiting:
            client = heapq.heappop(self._turns)[2]
            client.jobs.popitem(last=False)
            self._requeue(client)

    def _requeue(self, client: _Client) -> None:
        if client.jobs:
            self._push_turn(client)
            return
        del self._clients[client.turn]
        if self._clients:
            self._left[client.turn] = client.clock
        else:  # everybody has been served: nobody owes anybody
            self._now = client.clock
            self._left.clear()
        if len(self._left) > 2 * len(self._clients) + 64:
            self._left = {turn: clock for turn, clock in self._left.items() if clock > self._now}

    def _push_turn(self, client: _Client) -> None:
        heapq.heappush(self._turns, (client.clock, next(self._ticket), client))
