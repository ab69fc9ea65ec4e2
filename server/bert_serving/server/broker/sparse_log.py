"""Warnings about clients, limited in number: a client must not be able to fill the log."""

from __future__ import annotations

import logging
import time
from collections import Counter

log = logging.getLogger(__name__)

_EVERY_S = 10.0


class SparseLog:
    """Logs each kind of warning at most once in ten seconds, with the number of skipped warnings of this kind."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}  # message -> when it may be logged again
        self._num_skipped: Counter[str] = Counter()

    def warning(self, message: str, *args: object) -> None:
        """Log a warning, or count it as skipped. Warnings with the same message are of one kind."""
        now = time.monotonic()
        if now < self._next.get(message, 0.0):
            self._num_skipped[message] += 1
            return
        log.warning(f"{message} (%d more since the last warning)", *args, self._num_skipped.pop(message, 0))  # noqa: G004
        self._next[message] = now + _EVERY_S
