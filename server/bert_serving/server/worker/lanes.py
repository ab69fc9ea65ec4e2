"""The threads that compute the batches of a worker, and which of them computes what.

A large pass runs alone, in the main thread with all threads of OpenMP. Such threads wait for each other some dozen
times in a pass, each time for the slowest. So if there are enough small passes, each thread ("lane") computes one
of its own, without OpenMP, and waits for nobody. The main thread is one of the lanes.

Only compiled passes have lanes: Python between the layers of others needs the lock that all threads share.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from bert_serving.protocol.workers import Batch, Failed, Result

from .compiled import operators
from .computation import Computation, Outcome, Step, TokenizedBatch, Turns
from .micro_batches import MicroBatch


class Compiled:
    """In place of a batch: forward passes are compiled from now on."""


@dataclass(frozen=True, slots=True)
class Task:
    """A step of a batch that a thread has taken.

    is_in_main: the main thread has taken it. has_all_threads: no other pass runs, so this one may use all threads.
    """

    computation: Computation
    step: Step
    is_in_main: bool
    has_all_threads: bool

    @property
    def is_in_lane(self) -> bool:
        """Whether it is a pass that runs in one thread, beside others."""
        return isinstance(self.step, MicroBatch) and not self.has_all_threads

    def run(self) -> Outcome:
        """Compute the step in this thread."""
        with operators.one_thread() if self.is_in_lane else nullcontext():
            return self.computation.run(self.step)


#: What only the main thread handles: the error of a batch, new passes, or the end (None).
ForMain: TypeAlias = "Failed | Compiled | None"


class Work:
    """What can be computed now, for the main thread and the lanes beside it. Any thread may call all methods.

    num_lanes: how many threads compute small passes at the same time, the main thread included.
    """

    def __init__(self) -> None:
        self.num_lanes = 1
        self._lock = threading.Lock()
        self._for_main_thread = threading.Condition(self._lock)
        self._for_lanes = threading.Condition(self._lock)
        self._messages: deque[ForMain] = deque()
        self._batches: deque[Batch | TokenizedBatch] = deque()
        self._turns = Turns()
        self._begin: Callable[[Batch | TokenizedBatch], Computation] | None = None
        self._num_in_lanes = 0  # passes that run in one thread each
        self._num_planning = 0  # steps of lanes after which there may be more passes
        self._main_has_all = False  # all threads belong to what the main thread does
        self._main_wants_all = False  # it waits for the lanes
        self._main_is_idle = False
        self._is_closed = False

    def put(self, new: Batch | TokenizedBatch | ForMain) -> None:
        """Add a batch, or something for the main thread."""
        with self._lock:
            if self._is_closed:
                return
            if isinstance(new, Batch | TokenizedBatch):
                self._batches.append(new)
            else:
                self._messages.append(new)
            self._wake()

    def open(self, begin: Callable[[Batch | TokenizedBatch], Computation]) -> None:
        """Set how the computation of a batch begins. Call this before anything is taken."""
        self._begin = begin

    def take(self, timeout_s: float) -> Task | ForMain:
        """Return what the main thread does next. Raises TimeoutError if there was nothing for so long.

        Until the next call, no lane begins a pass, unless this one returned a task that runs beside others.
        """
        with self._lock:
            self._main_has_all = False
            while None not in self._messages:
                if (found := self._next_for_main()) is not None:
                    self._wake()  # there may be more to do
                    return found
                self._main_is_idle = True
                was_woken = self._for_main_thread.wait(timeout_s)
                self._main_is_idle = self._main_wants_all = False
                if not (was_woken or self._turns):
                    self._main_has_all = True
                    raise TimeoutError
            return None

    def _next_for_main(self) -> Task | ForMain:
        """Return what the main thread can do now; None if it has to wait."""
        if not self._messages:
            task = self._next(is_main=True)
            self._main_wants_all = task is None and self._turns.next() is not None
            return task
        if isinstance(self._messages[0], Compiled):
            self._main_wants_all = self._num_in_lanes > 0
            if self._main_wants_all:
                return None
            self._main_has_all = True
        return self._messages.popleft()

    def take_in_lane(self) -> Task | None:
        """Return what a thread beside the main thread does next; None at the end."""
        with self._lock:
            while not self._is_closed:
                may_begin = not (self._main_has_all or self._main_wants_all)
                if may_begin and (task := self._next(is_main=False)) is not None:
                    return task
                self._for_lanes.wait()
            return None

    def give_back(self, task: Task, outcome: Outcome) -> Result | Failed | None:
        """Note the outcome of a task; return the result of the batch if this ends it, Failed after an error.

        Then the thread must take the next task at once.
        """
        with self._lock:
            if task.has_all_threads:
                self._main_has_all = False
            elif task.is_in_lane:
                self._num_in_lanes -= 1
            elif not task.is_in_main:
                self._num_planning -= 1
            share = 1.0 if task.has_all_threads else 1 / self.num_lanes
            end = task.computation.give_back(outcome, share=share)
            if end is not None and not self._is_closed:
                self._turns.remove(task.computation)
            if not task.is_in_main:
                self._wake()
            return end

    def close(self) -> None:
        """Let `take_in_lane` return None, and forget the batches, with the model that they know."""
        with self._lock:
            self._is_closed = True
            self._begin = None
            self._batches.clear()
            self._turns = Turns()
            self._for_lanes.notify_all()

    def _next(self, *, is_main: bool) -> Task | None:
        assert self._begin is not None
        while self._batches:
            self._turns.add(self._begin(self._batches.popleft()))
        computation = self._turns.next()
        step = None if computation is None else computation.next_step
        if computation is None or step is None:
            return None
        has_all_threads = False
        if not isinstance(step, MicroBatch):
            self._num_planning += not is_main
        elif step.is_lane_sized and self._turns.num_lane_sized + self._num_in_lanes >= self.num_lanes:
            self._num_in_lanes += 1
        elif is_main and not self._num_in_lanes and not self._num_planning:
            has_all_threads = self._main_has_all = True
        else:
            return None
        return Task(computation, self._turns.take(computation), is_main, has_all_threads)

    def _wake(self) -> None:
        if self._main_is_idle:  # it wakes the lanes if they are needed: one wake-up is enough for a short text
            self._for_main_thread.notify()
        elif self.num_lanes > 1 and not self._main_has_all and (self._batches or self._turns.next() is not None):
            self._for_lanes.notify_all()


class Lanes:
    """The threads beside the main thread, which starts them.

    count: how many threads compute, the main thread included. done: is called with each task and its outcome, in
    the thread that has computed it.
    """

    def __init__(self, work: Work, count: int, done: Callable[[Task, Outcome], None]) -> None:
        self._work = work
        self._done = done
        self._have_started = threading.Barrier(count)
        self._threads = [
            threading.Thread(target=self._run, name=f"lane-{i}", daemon=True) for i in range(1, count)
        ]
        work.num_lanes = count
        num_threads = torch.get_num_threads()
        try:
            for thread in self._threads:
                thread.start()
            self._have_started.wait()
        except BaseException:
            self._have_started.abort()
            raise
        torch.set_num_threads(num_threads)  # a lane has changed what later threads start with

    def join(self) -> None:
        """Wait until the threads have ended. Close the work before."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            torch.get_num_threads()  # PyTorch sets a thread's number when it is first asked for
            torch.set_num_threads(1)  # no operation may start threads of OpenMP here
            self._have_started.wait()
            while (task := self._work.take_in_lane()) is not None:
                self._done(task, task.run())
        except BaseException:
            self._have_started.abort()
            self._work.put(None)  # the main thread cannot go on without the lane
            raise
