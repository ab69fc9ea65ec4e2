"""The memory of GPUs, as the workers report it."""

from __future__ import annotations

from collections.abc import Mapping

from .text_format import Registry, head, series
from .workers import WorkerView

_NAME = "bert_serving_device_memory_bytes"
_MEANING = (
    "GPU memory that a worker has taken for its model and its batches: what PyTorch holds, also what it keeps for "
    "later batches. Only with GPUs"
)


class DeviceMetrics:
    """The GPU memory of each worker that has a GPU. There is no such metric if no worker has one.

    workers: read at each scrape, so that the memory of a worker vanishes with its process.
    """

    def __init__(self, registry: Registry, workers: Mapping[str, WorkerView]) -> None:
        self._head = head(_NAME, _MEANING, "gauge")
        self._workers = workers
        registry.register(self)

    def numbers(self) -> tuple[()]:
        """Return nothing: the template has all numbers."""
        return ()

    @property
    def template(self) -> str:
        """All lines of the metric."""
        lines = [
            f"{series(_NAME, {'worker': name})}{worker.heartbeat.device_bytes}\n"
            for name, worker in self._workers.items()
            if worker.heartbeat is not None and worker.heartbeat.device_bytes is not None
        ]
        return "".join([self._head, *lines]) if lines else ""
