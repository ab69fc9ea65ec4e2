"""Chooses, for each forward pass, between all threads and one.

At rest, all threads are faster. But if another program keeps a core busy, each thread often waits for the one
whose core is taken, and one thread alone is much faster (`python -m benchmarks.arena --workloads busy`). What
other programs do can change at any time, so the choice follows from how long passes have taken.
"""

from __future__ import annotations

from dataclasses import dataclass

_SLOW = 2.0  # a pass is slow if it takes this many times as long as the fastest of its size
_NUM_SLOW = 2  # so many slow passes, one after the other, are no accident
_TRIAL_EVERY = 64  # with one thread, every so many passes all threads are tried
_FORGETTING = 1.001  # the fastest time grows by this factor with each pass: processors do not keep their speed
_WEIGHT = 0.2  # of the newest pass in a mean


@dataclass(slots=True)
class _Size:
    """What is known about passes of about one size; times are seconds for a token.

    fastest: with all threads. slow: the last slow pass with all threads. alone: the mean with one thread; None:
    not known yet. count: passes since one thread was chosen.
    """

    fastest: float = float("inf")
    slow: float = 0.0
    num_slow: int = 0
    is_alone: bool = False
    alone: float | None = None
    count: int = 0


class ThreadChoice:
    """Remembers how long passes have taken, by size. Sizes between two powers of two count as one size."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def should_run_alone(self, num_tokens: int) -> bool:
        """Return whether the next pass of this size should run in one thread."""
        size = self._size(num_tokens)
        if not size.is_alone:
            return False
        size.count += 1
        return size.count % _TRIAL_EVERY != 0

    def note(self, num_tokens: int, seconds: float, *, alone: bool) -> None:
        """Note how long a pass took. alone: it ran in one thread."""
        size, time = self._size(num_tokens), seconds / num_tokens
        if alone:
            size.alone = time if size.alone is None else size.alone + _WEIGHT * (time - size.alone)
            if size.alone > size.slow:
                self._choose(size, alone=False)
            return
        size.fastest = min(size.fastest * _FORGETTING, time)
        if size.is_alone:
            if size.alone is None or time <= size.alone:
                self._choose(size, alone=False)
            return
        is_slow = time > _SLOW * size.fastest
        size.num_slow = size.num_slow + 1 if is_slow else 0
        if is_slow:
            size.slow = time
        if size.num_slow == _NUM_SLOW:
            self._choose(size, alone=True)

    def _size(self, num_tokens: int) -> _Size:
        return self._sizes.setdefault(num_tokens.bit_length(), _Size())

    @staticmethod
    def _choose(size: _Size, *, alone: bool) -> None:
        size.is_alone, size.alone, size.num_slow, size.count = alone, None, 0, 0
