"""The thread that sends batches while another one takes the results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any


class Producer(threading.Thread):
    """Hands each batch of an iterable to `send`, with at most `window` of them under way.

    limit: send so many batches at most. error: what the iterable or `send` raised, once the thread ended.
    """

    def __init__(
        self, send: Callable[[Any], None], batches: Iterable[Any], *, limit: int | None, window: int
    ) -> None:
        super().__init__(name="producer", daemon=True)
        self._send = send
        self._batches = batches
        self._limit = limit
        self._room = threading.Semaphore(window)
        self._is_stopping = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for batch in islice(self._batches, self._limit):
                self._room.acquire()
                if self._is_stopping:
                    return
                self._send(batch)
        except BaseException as exc:  # handed to the thread that takes the results
            self.error = exc

    def batch_done(self) -> None:
        """Make room for another batch."""
        self._room.release()

    def stop(self) -> None:
        """Send no more; the thread ends when the iterable next gives it a batch."""
        self._is_stopping = True
        self._room.release()
