"""Jobs that wait for a worker, and the order in which they are taken: fair among flows. Does no I/O.

Start-time fair queueing (Goyal et al. 1996): each flow has a clock. When tokens are taken from a flow, its clock
advances by their number. The flow with the lowest clock goes next, and this clock becomes the time of the queue.
The clock of a new flow starts at the time of the queue: a new flow has no debt and no credit.

The caller decides what a flow is: jobs with the same `Job.flow` are in one flow.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, field

from .job import Job, Slice, TextCost

# Tokens that may be taken from a flow before the next flow's turn. With a smaller number, slices would have so few
# texts that they cost more time in the broker than in the worker.
_QUANTUM_TOKENS = 256.0
_MIN_LEFT = 64


@dataclass(slots=True)
class _Flow:
    key: bytes
    clock: float
    # By job_id. A deque would be slow: the flow of all unsubscribed clients may hold 100,000 jobs, and a job that
    # ends must be removed from any place in the flow.
    jobs: OrderedDict[int, Job] = field(default_factory=OrderedDict)

    @property
    def first(self) -> Job:
        return next(iter(self.jobs.values()))


class FairQueue:
    """A queue of jobs. Slices are taken from it so that each flow gets an equal share of the tokens."""

    def __init__(self) -> None:
        self._flows: dict[bytes, _Flow] = {}
        self._heap: list[tuple[float, int, _Flow]] = []  # lowest clock first
        self._now = 0.0
        self._left: dict[bytes, float] = {}  # clocks of empty flows: a flow that returns keeps its debt
        self._max_left = _MIN_LEFT  # with more clocks, those without a debt are removed
        self._ticket = itertools.count()
        # Flows that have lost their last job stay in the heap until they reach its top or are too many: to remove
        # one of them from the middle, the heap must be built again.
        self._num_empty = 0

    def __bool__(self) -> bool:
        return self._front() is not None

    def first_tokens(self, cost: TextCost) -> float:
        """Return the estimated tokens of the text that goes next; 0 if no text waits."""
        job = self._front()
        return 0.0 if job is None else job.reach(0.0, 1, cost)[1]

    def push(self, job: Job) -> None:
        """Add a job after the other jobs of its flow."""
        flow = self._flows.get(job.flow)
        if flow is None:
            clock = max(self._now, self._left.pop(job.flow, 0.0))
            flow = self._flows[job.flow] = _Flow(job.flow, clock)
            self._push_flow(flow)
        elif not flow.jobs:
            self._num_empty -= 1
        flow.jobs[job.job_id] = job

    def discard(self, job: Job) -> None:
        """Remove a job, if it is in this queue."""
        flow = self._flows.get(job.flow)
        if flow is None or flow.jobs.pop(job.job_id, None) is None:
            return
        if not flow.jobs:
            self._num_empty += 1
            self._drop_empty_flows()

    def take(
        self,
        *,
        max_tokens: float,
        max_texts: int,
        cost: TextCost,
        at_least_one: bool = True,
        max_text_tokens: float = math.inf,
    ) -> tuple[list[Slice], float]:
        """Take texts with at most `max_tokens` in total; return the slices and the number of their tokens.

        at_least_one: take the first text even if it has more than `max_tokens`. max_text_tokens: skip a flow while
        its first text has more tokens than this; not less than `max_tokens`.
        """
        slices: list[Slice] = []
        skipped: list[tuple[float, int, _Flow]] = []
        room_tokens, room_texts = max_tokens, max_texts
        while room_texts > 0 and (job := self._front()) is not None:
            clock, _, flow = self._heap[0]
            quantum = min(room_tokens, self._lead(clock) + _QUANTUM_TOKENS)
            stop, tokens = job.reach(quantum, room_texts, cost)
            if tokens > max_text_tokens:
                skipped.append(heapq.heappop(self._heap))
                continue
            if tokens > room_tokens and (slices or not at_least_one):
                break
            room_tokens -= tokens
            room_texts -= stop - job.num_taken
            slices.append(job.take(stop))
            self._advance(flow, job, tokens)
            if room_tokens <= 0:
                break
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        return slices, max_tokens - room_tokens

    def _lead(self, clock: float) -> float:
        """Return how many tokens `clock`, the lowest, is behind the next clock; inf if there is only one."""
        heap = self._heap
        if len(heap) < 3:
            return heap[1][0] - clock if len(heap) == 2 else math.inf
        return min(heap[1][0], heap[2][0]) - clock

    def _advance(self, flow: _Flow, job: Job, tokens: float) -> None:
        """Note that tokens of the first job of the first flow were taken."""
        heapq.heappop(self._heap)
        self._now = max(self._now, flow.clock)  # the clock of a flow that was skipped may be lower
        flow.clock += tokens
        if not job.is_waiting:
            del flow.jobs[job.job_id]
        self._requeue(flow)

    def _front(self) -> Job | None:
        """Return the first job of the first flow; None if no job waits. Removes what has ended before it."""
        while self._heap:
            flow = self._heap[0][2]
            if not flow.jobs:
                self._num_empty -= 1
            elif (job := flow.first).is_waiting:
                return job
            else:
                flow.jobs.popitem(last=False)
            heapq.heappop(self._heap)
            self._requeue(flow)
        return None

    def _drop_empty_flows(self) -> None:
        if self._num_empty <= len(self._heap) // 2 + 64:
            return
        empty = [entry[2] for entry in self._heap if not entry[2].jobs]
        self._heap = [entry for entry in self._heap if entry[2].jobs]
        heapq.heapify(self._heap)
        self._num_empty = 0
        for flow in empty:
            self._requeue(flow)

    def _requeue(self, flow: _Flow) -> None:
        if flow.jobs:
            self._push_flow(flow)
            return
        del self._flows[flow.key]
        if self._flows:
            self._left[flow.key] = flow.clock
        else:  # the queue is empty: forget all debts
            self._now = flow.clock
            self._left.clear()
        if len(self._left) > self._max_left:
            self._left = {key: clock for key, clock in self._left.items() if clock > self._now}
            self._max_left = 2 * len(self._left) + _MIN_LEFT

    def _push_flow(self, flow: _Flow) -> None:
        heapq.heappush(self._heap, (flow.clock, next(self._ticket), flow))
