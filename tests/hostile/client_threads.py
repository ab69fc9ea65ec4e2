"""Threads that run while a test or a script is in a context."""

from __future__ import annotations

import threading
from typing import Self


class ClientThreads:
    """Starts its threads on entry; on exit, asks them to stop and waits for them.

    A subclass appends to `_threads`. Each thread must end soon after `_should_stop` is set.
    """

    def __init__(self) -> None:
        self._should_stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._should_stop.set()
        for thread in self._threads:
            thread.join()
