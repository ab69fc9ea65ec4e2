"""Counters, gauges and histograms for the thread of the server's loop.

Those of prometheus_client take a lock and search all buckets for each number, which takes 1 to 2 us. These only
note the number. text_format.py says what they have to do when Prometheus asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import add

import numpy as np
from prometheus_client.utils import floatToGoString

from .text_format import Kind, head, series

# Values are noted and counted later, which takes 0.07 us for each of so many. If there were more, counting them
# would be most of the work when Prometheus asks. A few are counted faster without numpy.
_MAX_UNCOUNTED = 64
_FEW = 24


class Number:
    """A number that changes: one series of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add to the number."""
        self.value += amount

    def set(self, value: float) -> None:
        """Replace the number; that of a counter by one that is counted elsewhere."""
        self.value = float(value)


class Counter(Number):
    """A number that only grows. name: without the suffix _total."""

    __slots__ = ("template",)

    def __init__(self, name: str, documentation: str) -> None:
        super().__init__()
        self.template = _template_of_one(f"{name}_total", documentation, "counter")

    def numbers(self) -> tuple[float]:
        """Return the number."""
        return (self.value,)


class Gauge(Number):
    """A number that grows and shrinks."""

    __slots__ = ("template",)

    def __init__(self, name: str, documentation: str) -> None:
        super().__init__()
        self.template = _template_of_one(name, documentation, "gauge")

    def numbers(self) -> tuple[float]:
        """Return the number."""
        return (self.value,)


def _template_of_one(name: str, documentation: str, kind: Kind) -> str:
    return f"{head(name, documentation, kind)}{series(name, {})}%s\n"


class LabelledNumbers:
    """A counter or a gauge with labels: one number for each combination of values. name: with its suffix."""

    def __init__(self, name: str, documentation: str, kind: Kind, *labels: str) -> None:
        self.template = head(name, documentation, kind)
        self._name = name
        self._labels = labels
        self._numbers: dict[tuple[str, ...], Number] = {}

    def labels(self, *values: str) -> Number:
        """Return the number for these values of the labels. A new one is zero."""
        found = self._numbers.get(values)
        if found is None:
            found = self._numbers[values] = Number()
            self.template += f"{series(self._name, dict(zip(self._labels, values, strict=True)))}%s\n"
        return found

    def numbers(self) -> list[float]:
        """Return all numbers."""
        return [each.value for each in self._numbers.values()]

    def by_first_label(self) -> dict[str, float]:
        """Return all numbers by the values of the first label, which must be different for each of them."""
        return {values[0]: each.value for values, each in self._numbers.items()}


class Buckets:
    """Counts how many values are at most as large as each bound. bounds: in ascending order."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self._searched = np.array(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._uncounted: list[float] = []

    @property
    def total(self) -> float:
        """The sum of all values."""
        self._count()
        return self._total

    @property
    def counts(self) -> list[int]:
        """How many values are in each bucket, not added up; the last one is for values above all bounds."""
        self._count()
        return self._counts

    def observe(self, value: float) -> None:
        """Note a value."""
        self._uncounted.append(value)
        if len(self._uncounted) >= _MAX_UNCOUNTED:
            self._count()

    def observe_all(self, values: Iterable[float]) -> None:
        """Note values."""
        self._uncounted.extend(values)
        if len(self._uncounted) >= _MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        values = self._uncounted
        if not values:
            return
        if len(values) <= _FEW:
            for value in values:
                self._counts[bisect_left(self.bounds, value)] += 1
        else:
            places = self._searched.searchsorted(values)
            added = np.bincount(places, minlength=len(self._counts)).tolist()
            self._counts = list(map(add, self._counts, added))
        self._total += sum(values)
        values.clear()


class SummedHistogram:
    """Shows several buckets with the same bounds as one histogram."""

    def __init__(self, name: str, documentation: str, *buckets: Buckets) -> None:
        bounds = [*map(floatToGoString, buckets[0].bounds), "+Inf"]
        names = [series(f"{name}_bucket", {"le": bound}) for bound in bounds]
        lines = [f"{each}%s\n" for each in (*names, f"{name}_count ", f"{name}_sum ")]
        self.template = head(name, documentation, "histogram") + "".join(lines)
        self._buckets = buckets

    def numbers(self) -> list[float]:
        """Return the number of values up to each bound, the number of all values, and their sum."""
        counts = self._buckets[0].counts
        for other in self._buckets[1:]:
            counts = list(map(add, counts, other.counts))
        added_up: list[float] = list(accumulate(counts))
        return [*added_up, added_up[-1], sum([each.total for each in self._buckets])]


class Histogram(Buckets):
    """Buckets that are shown under a name."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        super().__init__(bounds)
        shown = SummedHistogram(name, documentation, self)
        self.template = shown.template
        self.numbers = shown.numbers
