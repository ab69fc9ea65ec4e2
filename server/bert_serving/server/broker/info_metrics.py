"""Metrics with the value 1, whose labels tell which software runs and which model each worker serves."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ..settings import Settings, own_version
from .workers import WorkerView

_LIBRARIES = ("torch", "transformers")
_FACTS = ("fingerprint", "kind", "device", "dtype", "dimension", "max_seq_len")


class InfoMetrics(Collector):
    """The versions, and for each worker that has been ready the model that it serves.

    workers: read at each scrape, because a reload may change the model.
    """

    def __init__(self, registry: CollectorRegistry, settings: Settings, workers: Mapping[str, WorkerView]) -> None:
        self._build = {
            "version": own_version(),
            "python": platform.python_version(),
            **{name: _version_of(name) for name in _LIBRARIES},
        }
        self._model = {"model": settings.served_model_name or "", "revision": settings.revision or ""}
        self._workers = workers
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield both metric families."""
        build = _info("build", "The software that runs", self._build)
        build.add_metric([*self._build.values()], 1)
        yield build
        models = _info("model", "The model that a worker serves", ("worker", *self._model, *_FACTS))
        for name, worker in self._workers.items():
            if worker.facts is not None:
                facts = [str(getattr(worker.facts, fact)) for fact in _FACTS]
                models.add_metric([name, *self._model.values(), *facts], 1)
        yield models


def _info(name: str, documentation: str, labels: Mapping[str, str] | tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bert_serving_{name}_info", documentation, labels=list(labels))


def _version_of(library: str) -> str:
    """Return the version that is installed, without importing the library; "" if there is none."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
