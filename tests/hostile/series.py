"""Samples of a long run, and the lines that are fitted to them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

#: How much a series may rise over the whole run, by the end of its name: a part of its level, and an amount.
TOLERANCES = {
    "memory MiB": (0.05, 5.0),
    "descriptors": (0.0, 2.0),
    "threads": (0.0, 1.0),
    "p50 ms": (0.2, 10.0),
    "p99 ms": (0.3, 50.0),
}

# The share of the run that is not judged. A worker keeps prepared matrix products for each number of tokens; its
# caches are full after ten minutes of thirty.
_WARM_UP = 1 / 3


@dataclass(frozen=True)
class Trend:
    """A line fitted to a series of medians, one for each minute: its values at both ends."""

    name: str
    first: float
    last: float

    @classmethod
    def of(cls, name: str, minutes: list[float]) -> Trend:
        """Fit a line to the values after the warm-up."""
        judged = minutes[int(len(minutes) * _WARM_UP) :]
        if len(judged) < 2:
            return cls(name, judged[0], judged[0])
        slope, start = np.polyfit(np.arange(len(judged)), judged, 1)
        return cls(name, float(start), float(start + slope * (len(judged) - 1)))

    def __str__(self) -> str:
        return f"{self.name} went from {self.first:.1f} to {self.last:.1f}"

    @property
    def is_flat(self) -> bool:
        """Whether the line rises by no more than the tolerance."""
        part, amount = next(limits for end, limits in TOLERANCES.items() if self.name.endswith(end))
        return self.last - self.first <= part * self.first + amount


class Series:
    """Samples of many values. Each value gets its median for each period, which is a minute in long runs."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._began = time.monotonic()
        self._samples: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, name: str, value: float) -> None:
        """Add a sample, taken now."""
        self._samples[name][int((time.monotonic() - self._began) / self._period_s)].append(value)

    def medians(self) -> dict[str, list[float]]:
        """Return the medians of each value. Periods without a sample are left out."""
        return {
            name: [round(statistics.median(periods[i]), 3) for i in sorted(periods)]
            for name, periods in self._samples.items()
        }
