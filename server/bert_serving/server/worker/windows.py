"""Overlapping windows over a text that is longer than the model's sequences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

_OVERLAP = 8  # neighbouring windows share at least 1/8 of their tokens


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) of a text. Of this window, only the vectors of [kept_start, kept_stop) are used.

    Windows overlap, but each token is kept in one window only. The border lies in the middle of an overlap, so
    that a kept token has context on both sides.
    """

    start: int
    stop: int
    kept_start: int
    kept_stop: int


def windows(num_tokens: int, size: int) -> list[Window]:
    """Return evenly spaced windows of `size` tokens that cover num_tokens. num_tokens: at least `size`."""
    overlap = size // _OVERLAP
    count = max(1, -(-(num_tokens - overlap) // (size - overlap)))  # rounded up
    last = num_tokens - size
    starts = [round(i * last / (count - 1)) for i in range(count)] if count > 1 else [0]
    borders = [0, *((after + before + size) // 2 for before, after in pairwise(starts)), num_tokens]
    return [Window(start, start + size, borders[i], borders[i + 1]) for i, start in enumerate(starts)]
