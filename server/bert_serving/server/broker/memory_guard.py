"""The memory of this process, and a limit for it.

The broker counts what it holds for clients (see account.py). It cannot count what libzmq holds before the broker
has read it: unfinished messages, whose frames have no limit together, and refused subscriptions. If that becomes
too much, only the end of all connections of clients helps.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_CHECK_EVERY_S = 0.02  # within this time, libzmq can take tens of megabytes
_PAUSE_S = 0.3  # libzmq needs time to free memory
_MAX_IN_A_ROW = 10


class MemoryGuard:
    """Compares the resident memory of this process with a limit, a few times in a second.

    max_growth: bytes that the process may have in addition to what it has now. If it has too much for several
    seconds, something else holds the memory, and the limit is raised.
    """

    def __init__(self, max_growth: int) -> None:
        self._max_growth = max_growth
        self._limit = rss_bytes(os.getpid()) + max_growth
        self._next_check = 0.0
        self._num_in_a_row = 0

    def is_exceeded(self, now: float) -> bool:
        """Whether the process has too much memory. False if that was checked just now. now: monotonic seconds."""
        if now < self._next_check:
            return False
        rss = rss_bytes(os.getpid())
        if rss > self._limit and self._num_in_a_row:
            return_memory(0)
            rss = rss_bytes(os.getpid())
        if rss <= self._limit:
            self._num_in_a_row = 0
            self._next_check = now + _CHECK_EVERY_S
            return False
        self._num_in_a_row += 1
        if self._num_in_a_row > _MAX_IN_A_ROW:
            self._limit = rss + self._max_growth
        self._next_check = now + _PAUSE_S
        return True


#: glibc's malloc_trim: returns memory that is free to the system. Does nothing with another C library.
return_memory: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it is not known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # the process has ended, or the system has no /proc
        return 0
