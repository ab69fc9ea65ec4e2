"""Metrics of the texts that were not computed, because their vectors were known or in flight."""

from __future__ import annotations

from .counting import Counter, Gauge
from .repeats import Repeats
from .text_format import Registry


class RepeatMetrics:
    """Reads the counts when metrics are asked for."""

    def __init__(self, registry: Registry, repeats: Repeats) -> None:
        self._repeats = repeats
        families = (
            Counter(
                "bert_serving_shared_texts", "Texts that got the vector of an equal text that was being computed"
            ),
            Counter("bert_serving_cache_hits", "Texts whose vector was found in the cache; 0 without -cache_mb"),
            Counter("bert_serving_cache_misses", "Texts whose vector was looked up in the cache and not found"),
            Gauge("bert_serving_cache_texts", "Texts whose vectors are in the cache"),
            Gauge("bert_serving_cache_bytes", "Bytes of the cache: texts, vectors and their places"),
            Gauge("bert_serving_cache_capacity_bytes", "Bytes that the cache may have: -cache_mb"),
        )
        self.template = "".join(family.template for family in families)
        registry.register(self)

    def numbers(self) -> list[float]:
        """Return the numbers of all metrics."""
        shared, cache = self._repeats.in_flight.num_shared, self._repeats.cache
        return [shared, cache.num_hits, cache.num_misses, len(cache), cache.num_bytes, cache.max_bytes]
