"""Metrics with the value 1, whose labels tell which software runs and which model each worker serves."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from bert_serving.protocol.workers import ModelFacts

from ..settings import Settings, own_version
from .text_format import Registry, head, series
from .workers import WorkerView

_LIBRARIES = ("torch", "transformers")
_FACTS = ("fingerprint", "kind", "device", "dtype", "dimension", "max_seq_len")
_BUILD = "bert_serving_build_info"
_MODEL = "bert_serving_model_info"


class InfoMetrics:
    """The versions, and for each worker that has been ready the model that it serves.

    workers: read at each scrape, because a reload may change the model.
    """

    def __init__(self, registry: Registry, settings: Settings, workers: Mapping[str, WorkerView]) -> None:
        build = {
            "version": own_version(),
            "python": platform.python_version(),
            **{name: _version_of(name) for name in _LIBRARIES},
        }
        self._before = (
            f"{head(_BUILD, 'Always 1; the labels are versions', 'gauge')}{series(_BUILD, build)}1.0\n"
            f"{head(_MODEL, 'Always 1; the model of each worker that is ready', 'gauge')}"
        )
        self._model = {"model": settings.served_model_name or "", "revision": settings.revision or ""}
        self._workers = workers
        self._lines: dict[str, tuple[ModelFacts, str]] = {}  # by worker, with the facts of which each was made
        registry.register(self)

    def numbers(self) -> tuple[()]:
        """Return nothing: the template has all numbers."""
        return ()

    @property
    def template(self) -> str:
        """All lines of both metrics."""
        return self._before + "".join([self._line(name, worker.facts) for name, worker in self._workers.items()])

    def _line(self, worker: str, facts: ModelFacts | None) -> str:
        if facts is None:
            return ""
        if worker not in self._lines or self._lines[worker][0] is not facts:
            labels = {"worker": worker, **self._model, **{name: str(getattr(facts, name)) for name in _FACTS}}
            self._lines[worker] = facts, f"{series(_MODEL, labels)}1.0\n"
        return self._lines[worker][1]


def _version_of(library: str) -> str:
    """Return the version that is installed, without importing the library; "" if there is none."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
