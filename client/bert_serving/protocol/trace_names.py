"""The names of requests in log lines. Clients do not import this module."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

_MAX_NAMES = 8


@dataclass(frozen=True, slots=True)
class TraceNames:
    """The names of the requests in a batch: at most eight. num_more: how many other names there are."""

    names: tuple[str, ...] = ()
    num_more: int = 0

    @classmethod
    def of(cls, traces: Iterable[str | None]) -> TraceNames:
        """Return the names of requests. Each occurs one time; a request without a name is "-"."""
        names = tuple(dict.fromkeys(trace or "-" for trace in traces))
        return cls(names[:_MAX_NAMES], len(names[_MAX_NAMES:]))

    def __str__(self) -> str:
        """Return the names as one field of a log line."""
        more = [f"and {self.num_more} more"] if self.num_more else []
        return ",".join([*map(quoted, self.names), *more])


def quoted(value: object) -> str:
    """Return a value for a log line, in quotes if it could look like other values: callers choose request ids."""
    text = str(value)
    return json.dumps(text) if set(text) & set(' ,="') else text
