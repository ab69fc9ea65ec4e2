"""Measure what observing a server costs the loop of its server process.

    python -m benchmarks.observing

Prints the times of a scrape in the broker (collecting the numbers, and writing them as JSON; a gateway does the
rest), and of one point of the history that the page in the browser shows. Before each of them, the given number of
values is noted in each of the histograms that a busy server uses.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
from bert_serving.server.broker.history import INTERVAL_S, History
from bert_serving.server.broker.loop_clock import LoopClock
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.tei_metrics import TeiMetrics
from bert_serving.server.broker.workers import WorkerView

from .common import cpu_name, seconds

_ROUNDS = 2000
_NUM_VALUES = (0, 31, 63)


def main() -> None:
    """Measure and print."""
    sys.stdout.write(f"{cpu_name()}: medians of {_ROUNDS} rounds, in ms\n")
    for num_values in _NUM_VALUES:
        metrics = BrokerMetrics(["worker-0"])
        TeiMetrics(metrics)
        history = _Points(metrics)
        scrape = _median(metrics, num_values, metrics.registry.snapshot)
        snapshot = metrics.registry.snapshot()
        as_json = _median(metrics, 0, lambda: orjson.dumps(snapshot._asdict()))  # noqa: B023
        point = _median(metrics, num_values, history.note)
        sys.stdout.write(f"{num_values} values: scrape {scrape:.3f}, JSON {as_json:.3f}, point {point:.3f}\n")


class _Points:
    """A history to which each call of `note` adds a point."""

    def __init__(self, metrics: BrokerMetrics) -> None:
        memory = SimpleNamespace(held=0, capacity=1)
        scheduler: Any = SimpleNamespace(
            num_waiting=0, num_jobs=0, oldest_age_s=lambda now: 0.0, admission=SimpleNamespace(memory=memory)
        )
        self._history = History(metrics, scheduler, {"worker-0": WorkerView("worker-0")}, LoopClock())
        self._now = 0.0
        self.note()

    def note(self) -> None:
        """Add a point."""
        self._now += INTERVAL_S
        self._history.note(self._now)


def _median(metrics: BrokerMetrics, num_values: int, work: Callable[[], object]) -> float:
    used = (metrics.latency, metrics.queue, metrics.tokenize, metrics.compute, metrics.turn, metrics.batch_texts)
    times = []
    for _ in range(_ROUNDS):
        for histogram in used:
            histogram.observe_all([0.01] * num_values)
        times.append(seconds(work))
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
