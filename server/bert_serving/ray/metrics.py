"""The server's metrics on Ray's metrics endpoint, and the metrics of several replicas as one text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

_EVERY_S = 5.0

log = logging.getLogger(__name__)


class PublishedMetrics:
    """Publishes metrics with Ray's own: each series as a gauge with the same name and labels.

    Ray puts `ray_` before each name, and adds the labels application, deployment and replica. Gauges, because Ray
    takes no ready counts of a histogram; Prometheus' rate() and histogram_quantile() do not look at the type.

    read: returns the metrics in Prometheus' text format.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._gauges: dict[str, serve.metrics.Gauge] = {}

    async def publish_forever(self) -> None:
        """Publish every few seconds, until cancelled."""
        while True:
            try:
                text = self._read()
                await asyncio.to_thread(self.publish, text)  # it takes some milliseconds
            except Exception:  # metrics must not end what they describe
                log.exception("cannot publish metrics")
            await asyncio.sleep(_EVERY_S)

    def publish(self, text: str) -> None:
        """Set each gauge to the value of its series."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                gauge = self._gauges.get(sample.name)
                if gauge is None:
                    gauge = serve.metrics.Gauge(
                        sample.name, description=family.documentation, tag_keys=tuple(sample.labels)
                    )
                    self._gauges[sample.name] = gauge
                gauge.set(sample.value, tags=sample.labels)


def merged(texts: Iterable[tuple[str, str]]) -> str:
    """Return the metrics of several replicas as one text; each series has a label `replica` with its name.

    texts: (name of a replica, its metrics in Prometheus' text format).
    """
    families: dict[str, Metric] = {}
    for replica, text in texts:
        for family in text_string_to_metric_families(text):
            target = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                target.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    return generate_latest(_Families(families.values())).decode()


class _Families:
    """What generate_latest needs of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from self._families
