"""Overlapping windows over a text that is longer than the model's sequences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

_OVERLAP = 8  # one part in so many of a window is shared with its neighbour


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `stop`; those from `owned_start` to `owned_stop` no other window stands for.

    Where two windows overlap, each owns the half in which its own context reaches further.
    """

    start: int
    stop: int
    owned_start: int
    owned_stop: int


def windows(num_tokens: int, size: int) -> list[Window]:
    """Return windows of `size` tokens, evenly spread, that cover all of num_tokens >= size."""
    overlap = size // _OVERLAP
    count = max(1, -(-(num_tokens - overlap) // (size - overlap)))
    last = num_tokens - size
    starts = [round(i * last / (count - 1)) for i in range(count)] if count > 1 else [0]
    borders = [0, *((after + before + size) // 2 for before, after in pairwise(starts)), num_tokens]
    return [Window(start, start + size, borders[i], borders[i + 1]) for i, start in enumerate(starts)]
