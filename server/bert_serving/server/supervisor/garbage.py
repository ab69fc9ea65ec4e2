"""Keeps Python's full garbage collections from stopping the server's loop, and returns free memory to the system.

A full collection looks at every object of the process, and a flood can open tens of thousands of requests. So
automatic full collections are turned off, and one is made now and then while little is held. Young objects are
collected as always. Requests and replies are freed at once, because they are in no cycle.

What the process frees stays with glibc, which returns little of it to the system after large messages. So glibc is
told to return all of it after each full collection.
"""

from __future__ import annotations

import gc

from ..broker.memory_guard import return_memory

_NEVER = 1 << 30
_FEW_OBJECTS = 1000  # requests, replies and subscribers: a collection takes a few milliseconds
_EVERY_S = 10.0
_EVERY_S_IF_BUSY = 3600.0


class GarbageCollection:
    """Decides when a full collection is made. The constructor turns the automatic ones off in this process."""

    def __init__(self, now: float) -> None:
        self._last_at = now
        gc.collect()
        gc.freeze()  # what exists now stays until the end of the process
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _NEVER)

    def run_if_due(self, now: float, num_held: int) -> bool:
        """Make a full collection if it is time for one; return whether it was made. num_held: what is held."""
        interval_s = _EVERY_S if num_held < _FEW_OBJECTS else _EVERY_S_IF_BUSY
        if now - self._last_at < interval_s:
            return False
        self._last_at = now
        gc.collect()
        return_memory(0)
        return True
