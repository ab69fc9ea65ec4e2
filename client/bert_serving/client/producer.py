"""The thread that sends batches while another one takes the results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

_NO_ROOM_S = 0.01


class Producer(threading.Thread):
    """Hands each batch of an iterable to `send`, as soon as `has_room` says that another may be under way.

    limit: send so many batches at most. error: what the iterable or `send` raised, once the thread ended.
    """

    def __init__(
        self,
        send: Callable[[Any], None],
        batches: Iterable[Any],
        *,
        limit: int | None,
        has_room: Callable[[], bool],
    ) -> None:
        super().__init__(name="producer", daemon=True)
        self._send = send
        self._batches = batches
        self._limit = limit
        self._has_room = has_room
        self._stopped = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for batch in islice(self._batches, self._limit):
                while not self._has_room() and not self._stopped.wait(_NO_ROOM_S):
                    pass
                if self._stopped.is_set():
                    return
                self._send(batch)
        except BaseException as exc:  # handed to the thread that takes the results
            self.error = exc

    def stop(self) -> None:
        """Send no more; the thread ends when the iterable next gives it a batch."""
        self._stopped.set()
