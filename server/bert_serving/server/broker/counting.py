"""Counters and histograms for the thread of the server's loop.

Those of prometheus_client take a lock and search all buckets for each number, which takes 1 to 2 us. These only
note the number; what Prometheus asks for is computed when it asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

BucketCounts: TypeAlias = "npt.NDArray[np.int64]"

_MAX_UNCOUNTED = 1024


class Counter(Collector):
    """A number that only grows. name: without the suffix _total."""

    def __init__(self, name: str, documentation: str) -> None:
        self.value = 0.0
        self._name = name
        self._documentation = documentation

    def inc(self, amount: float = 1) -> None:
        """Add to the number."""
        self.value += amount

    def collect(self) -> Iterator[Metric]:
        """Yield the metric family."""
        yield CounterMetricFamily(self._name, self._documentation, self.value)


class Buckets:
    """Counts how many values are at most as large as each bound. bounds: in ascending order."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0
        self._uncounted: list[float] = []

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

    def counts(self) -> BucketCounts:
        """Return the number of values in each bucket; the last one has those above all bounds."""
        self._count()
        counts: BucketCounts = self._counts.copy()
        return counts

    def _count(self) -> None:
        places = np.searchsorted(self._bounds, self._uncounted)
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._total += sum(self._uncounted)
        self._uncounted.clear()

    def family(self, name: str, documentation: str, *others: Buckets) -> Metric:
        """Return the sum of this histogram and the others as a metric family."""
        all_of_them = (self, *others)
        for each in all_of_them:
            each._count()
        counts = accumulate(np.sum([each._counts for each in all_of_them], axis=0).tolist())
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, counts), strict=True))
        return HistogramMetricFamily(name, documentation, buckets, sum(each._total for each in all_of_them))


class Histogram(Buckets, Collector):
    """A histogram that Prometheus asks for."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        super().__init__(bounds)
        self._name = name
        self._documentation = documentation

    def collect(self) -> Iterator[Metric]:
        """Yield the metric family."""
        yield self.family(self._name, self._documentation)
