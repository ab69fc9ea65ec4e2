"""Time limits for the work of one step: no phase of a step may take long, however much there is to do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator


class Budget:
    """The time that one phase of a step may take, from now on. clock: returns seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = clock() + seconds

    @property
    def is_spent(self) -> bool:
        """Whether the phase must stop. A loop asks before each piece of work."""
        return self._clock() >= self._ends_at


class Chores:
    """Work that is done in small pieces, some in each step: to end a hundred thousand jobs takes too long for one.

    A chore is a generator that does one piece of its work before each `yield`.
    """

    def __init__(self) -> None:
        self._chores: deque[Iterator[None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._chores)

    def add(self, chore: Iterator[None]) -> None:
        """Add a chore; it begins when `run` comes to it."""
        self._chores.append(chore)

    def run(self, budget: Budget) -> None:
        """Work on the chores, the oldest first, until all are done or the budget is spent."""
        while self._chores and not budget.is_spent:
            for _ in self._chores[0]:
                if budget.is_spent:
                    return
            self._chores.popleft()
