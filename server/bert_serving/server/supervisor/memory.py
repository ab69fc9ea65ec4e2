"""Finds worker processes that use too much memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from ..broker.memory_guard import rss_bytes

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class MemoryWatch:
    """Looks at the memory of the ready workers about once a second. limit: in bytes; None: no limit.

    A process that is above the limit when it has just become ready is not replaced: the next one would not be
    smaller. There is a warning instead.
    """

    def __init__(self, limit: int | None, rss_of: Callable[[int], int] = rss_bytes) -> None:
        self._limit = limit
        self._rss_of = rss_of
        self._next_look_at = 0.0
        self._is_exempt: dict[int, bool] = {}  # by process id

    def too_large(self, workers: Mapping[str, int], now: float) -> Iterable[str]:
        """Return the names of the workers that have grown above the limit.

        workers: process ids of the ready workers, by name. now: time of the loop's clock.
        """
        if self._limit is None or now < self._next_look_at:
            return []
        self._next_look_at = now + _LOOK_EVERY_S
        self._is_exempt = {pid: exempt for pid, exempt in self._is_exempt.items() if pid in workers.values()}
        return [name for name, pid in workers.items() if self._has_grown(name, pid, self._limit)]

    def _has_grown(self, name: str, pid: int, limit: int) -> bool:
        rss = self._rss_of(pid)
        if pid not in self._is_exempt:
            self._is_exempt[pid] = rss > limit
            if rss > limit:
                log.warning(
                    "%s uses %d MiB with the model alone: -max_worker_rss %d is too low and has no effect",
                    name, rss >> 20, limit >> 20,
                )  # fmt: skip
        return rss > limit and not self._is_exempt[pid]
