"""Producer: the thread of `encode_async` that sends batches while the caller takes the results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextvars import copy_context
from itertools import islice

from bert_serving.protocol import Texts

_NO_ROOM_S = 0.01


class Producer(threading.Thread):
    """Calls `send` with each batch of an iterable, and waits before each call until `has_room` returns True.

    limit: the largest number of batches to send. error: the exception that the iterable or `send` raised, or None;
    set when the thread ends. The thread has the context variables of its creator, such as the active span.
    """

    def __init__(
        self,
        send: Callable[[Texts], None],
        batches: Iterable[Texts],
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
        self._context = copy_context()

    def run(self) -> None:
        """Send each batch as soon as `has_room` returns True."""
        self._context.run(self._send_all)

    def _send_all(self) -> None:
        try:
            for batch in islice(self._batches, self._limit):
                while not self._has_room() and not self._stopped.wait(_NO_ROOM_S):
                    pass
                if self._stopped.is_set():
                    return
                self._send(batch)
        except BaseException as exc:  # `encode_async` raises it in the thread that takes the results
            self.error = exc

    def stop(self) -> None:
        """Send no more batches. The thread ends when the iterable returns its next batch."""
        self._stopped.set()
