"""Warnings about clients, limited in number: a client must not be able to fill the log."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

_EVERY_S = 10.0


class SparseLog:
    """Logs at most one warning in ten seconds, with the number of warnings that it skipped before."""

    def __init__(self) -> None:
        self._next = 0.0
        self._num_skipped = 0

    def warning(self, message: str, *args: object) -> None:
        """Log a warning, or count it as skipped."""
        now = time.monotonic()
        if now < self._next:
            self._num_skipped += 1
            return
        log.warning(f"{message} (%d more since the last warning)", *args, self._num_skipped)  # noqa: G004
        self._next, self._num_skipped = now + _EVERY_S, 0
