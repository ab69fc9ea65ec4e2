"""The points of the last minutes, which the page in the browser shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bert_serving.server.broker.history import FIELDS, INTERVAL_S, History
from bert_serving.server.broker.loop_clock import LoopClock
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.workers import WorkerView


class Noted:
    """A history with one worker that is ready. points: by the names of their values."""

    def __init__(self) -> None:
        memory = SimpleNamespace(held=50, capacity=200)
        self.scheduler = SimpleNamespace(
            num_waiting=7, num_jobs=3, oldest_age_s=lambda now: 0.25, admission=SimpleNamespace(memory=memory)
        )
        self.metrics = BrokerMetrics(["worker-0"])
        self.views = {"worker-0": WorkerView("worker-0")}
        scheduler: Any = self.scheduler
        self.history = History(self.metrics, scheduler, self.views, LoopClock())
        self.now = 100.0
        self.history.note(self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.history.note(self.now)

    @property
    def points(self) -> list[dict[str, Any]]:
        return [dict(zip(FIELDS, point, strict=True)) for point in self.history.to_info(is_whole=True)["points"]]


def test_a_point_every_interval_and_not_more() -> None:
    noted = Noted()
    for _ in range(8):
        noted.after(INTERVAL_S / 4)
    assert len(noted.points) == 2


def test_rates_are_per_second_of_the_interval() -> None:
    noted = Noted()
    noted.metrics.texts.inc(100)
    noted.metrics.tokens.inc(900)
    noted.metrics.padding.inc(100)
    noted.metrics.batches.inc(2)
    noted.after(5.0)  # a slow turn of the loop
    noted.after(INTERVAL_S)
    first, second = noted.points
    assert (first["texts"], first["tokens"], first["padding_share"], first["batch_texts"]) == (20, 180, 0.1, 50)
    assert (second["texts"], second["padding_share"], second["batch_texts"]) == (0, None, None)
    assert (first["queue_texts"], first["queue_age"], first["held_share"]) == (7, 0.25, 0.25)


def test_the_fill_is_the_mean_of_the_batches() -> None:
    noted = Noted()
    noted.metrics.batches.inc(2)
    noted.metrics.batch_fill.observe_all([0.25, 0.75])
    noted.after(INTERVAL_S)
    assert noted.points[0]["batch_fill"] == 0.5


@pytest.mark.parametrize("scale", [0.0045, 0.45, 9.5])
def test_quantiles_are_those_of_the_interval(scale: float) -> None:
    noted = Noted()
    noted.metrics.compute.observe_all([299.0] * 1000)
    noted.after(INTERVAL_S)
    values = np.random.default_rng(0).uniform(0, scale, 2000)
    noted.metrics.compute.observe_all(values.tolist())
    noted.after(INTERVAL_S)
    noted.after(INTERVAL_S)
    last = noted.points[1]
    assert last["compute_p50"] == pytest.approx(scale / 2, rel=0.15)
    assert last["compute_p99"] == pytest.approx(scale, rel=0.3)
    assert noted.points[2]["compute_p50"] is None


def test_more_than_the_largest_bucket_is_its_bound() -> None:
    noted = Noted()
    noted.metrics.queue.observe(1000)
    noted.after(INTERVAL_S)
    assert noted.points[0]["queue_p50"] == 300


def test_errors_and_workers() -> None:
    noted = Noted()
    noted.metrics.errors.labels("overloaded").inc(3)
    noted.metrics.busy.labels("worker-0").inc(INTERVAL_S / 2)
    noted.after(INTERVAL_S)
    noted.after(INTERVAL_S)
    first, second = noted.points
    assert (first["errors"], second["errors"]) == ({"overloaded": 3}, {})
    assert (first["workers"], second["workers"]) == ([("starting", 0.5)], [("starting", 0.0)])


def test_the_end_of_the_history_continues_it() -> None:
    noted = Noted()
    for _ in range(40):
        noted.after(INTERVAL_S)
    recent = [point[0] for point in noted.history.to_info(is_whole=False)["points"]]
    assert recent == [point["id"] for point in noted.points][-10:] == [*range(31, 41)]


def test_only_the_last_fifteen_minutes_are_kept() -> None:
    noted = Noted()
    for _ in range(500):
        noted.after(INTERVAL_S)
    assert len(noted.points) * INTERVAL_S == 15 * 60
