"""Metrics of the texts that were not computed, because their vectors were known or in flight."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .repeats import Repeats


class RepeatMetrics(Collector):
    """Reads the counts when metrics are asked for."""

    def __init__(self, registry: CollectorRegistry, repeats: Repeats) -> None:
        self._repeats = repeats
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        cache = self._repeats.cache
        shared = "Texts that got the vector of an equal text that was being computed"
        yield CounterMetricFamily("bert_serving_shared_texts", shared, self._repeats.in_flight.num_shared)
        yield CounterMetricFamily("bert_serving_cache_hits", "Texts found in the cache", cache.num_hits)
        yield CounterMetricFamily("bert_serving_cache_misses", "Texts not found in the cache", cache.num_misses)
        yield GaugeMetricFamily("bert_serving_cache_texts", "Texts in the cache", len(cache))
        yield GaugeMetricFamily("bert_serving_cache_bytes", "Bytes of the cache", cache.num_bytes)
        yield GaugeMetricFamily("bert_serving_cache_capacity_bytes", "-cache_mb in bytes", cache.max_bytes)
