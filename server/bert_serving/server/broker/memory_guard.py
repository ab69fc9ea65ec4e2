"""The memory of this process, and a limit for it.

The broker counts what it holds for clients (see account.py). It cannot count what libzmq holds before the broker
has read it: unfinished messages, whose frames have no limit together, and refused subscriptions. If that becomes
too much, only the end of all connections of clients helps.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHECK_EVERY_S = 0.1
_PAUSE_S = 1.0  # libzmq needs time to free memory


class MemoryGuard:
    """Compares the resident memory of this process with a limit, a few times in a second.

    max_growth: bytes that the process may have in addition to what it has now. If it still has too much a second
    after it had too much, something else holds the memory, and the limit is raised.
    """

    def __init__(self, max_growth: int) -> None:
        self._max_growth = max_growth
        self._limit = rss_bytes(os.getpid()) + max_growth
        self._next_check = 0.0
        self._was_exceeded = False

    def is_exceeded(self, now: float) -> bool:
        """Whether the process has too much memory. False if that was checked just now. now: monotonic seconds."""
        if now < self._next_check:
            return False
        rss = rss_bytes(os.getpid())
        if self._was_exceeded and rss > self._limit:
            self._limit = rss + self._max_growth
        self._was_exceeded = rss > self._limit
        self._next_check = now + (_PAUSE_S if self._was_exceeded else _CHECK_EVERY_S)
        return self._was_exceeded


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it is not known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # the process has ended, or the system has no /proc
        return 0
