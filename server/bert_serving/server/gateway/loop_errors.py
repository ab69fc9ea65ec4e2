"""Logs errors of the event loop that no task handles."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

log = logging.getLogger(__name__)

_EVERY_S = 10.0


class LoopErrors:
    """An exception handler for an event loop. asyncio's own handler would log messages that may contain a text.

    An error of the system, such as too many open files, is logged at most once in ten seconds. asyncio reports it
    for each connection that it cannot accept, and a caller could fill the log with that.
    """

    def __init__(self) -> None:
        self._next: dict[int | None, float] = {}  # number of a system error -> when it may be logged again

    def __call__(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error, or skip it."""
        exc = context.get("exception")
        if isinstance(exc, OSError):
            now = time.monotonic()
            if now < self._next.get(exc.errno, 0.0):
                return
            self._next[exc.errno] = now + _EVERY_S
        log.error("%s", context["message"], exc_info=exc)
