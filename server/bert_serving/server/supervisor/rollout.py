"""Decides which worker is replaced next. Does no I/O.

A worker that runs may have to be replaced for three reasons: the user asked for a reload of the model, the worker
has an older model than another worker, or it uses too much memory. Workers are replaced one at a time, so that the
others serve meanwhile, and so that at most one additional model is in memory.
"""

from __future__ import annotations

import enum
from collections.abc import Container


class Reason(enum.Enum):
    """Why a worker that runs must be replaced; the text is for the log."""

    RELOAD = "reload"
    OUTDATED = "another worker has a newer model"
    MEMORY = "it uses more memory than -max_worker_rss allows"


class Rollout:
    """The workers that wait for their replacement, and the one that is being replaced."""

    def __init__(self) -> None:
        self._waiting: dict[str, Reason] = {}
        self._current: tuple[str, Reason] | None = None

    def request(self, name: str, reason: Reason) -> bool:
        """Put a worker in the queue; return False if it waits already, or if it is being replaced."""
        is_new = name not in self._waiting and name != self._current_name
        # A reload is never ignored: a process that is being started may have read the folder before its change.
        if is_new or reason is Reason.RELOAD:
            self._waiting[name] = reason
        return is_new

    def next(self, ready: Container[str]) -> tuple[str, Reason] | None:
        """Return the worker to replace now, and why; None if none is ready or a replacement runs.

        ready: the workers that can be replaced now. The others wait.
        """
        if self._current is not None:
            return None
        name = next((name for name in self._waiting if name in ready), None)
        if name is not None:
            self._current = name, self._waiting.pop(name)
        return self._current

    def finished(self, name: str) -> None:
        """Note that the worker has a new process: either its replacement is ready, or it was started again."""
        if name == self._current_name:
            self._current = None
        else:
            self._waiting.pop(name, None)

    def failed(self, name: str) -> Reason | None:
        """Note that the replacement of a worker could not start; return why the worker was replaced.

        A reload stops here: the other workers would not be able to load the model either.
        """
        if self._current is None or name != self._current_name:
            return None
        reason, self._current = self._current[1], None
        if reason is Reason.RELOAD:
            self._waiting = {each: why for each, why in self._waiting.items() if why is not Reason.RELOAD}
        return reason

    @property
    def _current_name(self) -> str | None:
        return None if self._current is None else self._current[0]
