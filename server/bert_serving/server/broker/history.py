"""What the server did in the last 15 minutes, for the page in the browser.

The broker adds a point every two seconds, also if no browser shows it, so that a page that is opened has curves
at once. A point takes 0.02 to 0.07 ms (benchmarks/observing.py, on an Intel Xeon with AMX). The number of points
is bounded: old ones are dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import JsonObject

from ..buckets import SECONDS
from .loop_clock import LoopClock
from .metrics import BrokerMetrics
from .scheduler import Scheduler
from .workers import WorkerView

INTERVAL_S = 2.0
_NUM_POINTS = 450
_NUM_RECENT = 10  # more than a gateway misses between two questions
_QUANTILES = (0.5, 0.99)
_STAGES = ("request", "queue", "tokenize", "compute")

#: What the values of a point are. id: a number that grows with each point, while the clock may jump. Rates are
#: per second; shares are from 0 to 1; times and ages are in seconds, and null if nothing was measured. errors: the
#: number of each code that occurred. workers: [state, share of the time in which its device computed] of each
#: worker, in the order of `workers` in the reply.
FIELDS = (
    "id", "time", "requests", "texts", "tokens", "padding_share", "truncated", "cancelled",
    "queue_texts", "queue_age", "open_requests", "held_share", "batch_texts", "batch_fill",
    *(f"{stage}_p{100 * q:g}" for stage in _STAGES for q in _QUANTILES),
    "errors", "workers",
)  # fmt: skip

Point: TypeAlias = "list[float | dict[str, int] | list[tuple[str, float]] | None]"


BucketCounts: TypeAlias = "npt.NDArray[np.int64]"


class _Counts(NamedTuple):
    """The counters at the time of a point. stages: the counts of the buckets of each stage."""

    totals: Mapping[str, float]
    stages: Sequence[BucketCounts]
    errors: Mapping[str, float]
    busy: Mapping[str, float]


class History:
    """The points of the last minutes. views: what is known about each worker; read at each point."""

    def __init__(
        self, metrics: BrokerMetrics, scheduler: Scheduler, views: Mapping[str, WorkerView], clock: LoopClock
    ) -> None:
        self._metrics = metrics
        self._scheduler = scheduler
        self._views = views
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=_NUM_POINTS)
        self._noted_at: float | None = None
        self._started = time.time()
        self._num_points = 0
        self._rates = {
            "requests": metrics.requests,
            "texts": metrics.texts,
            "tokens": metrics.tokens,
            "padding": metrics.padding,
            "truncated": metrics.truncated,
            "cancelled": metrics.cancelled,
            "batches": metrics.batches,
        }
        self._stages = (metrics.latency, metrics.queue, metrics.tokenize, metrics.compute)
        self._before = self._counts()

    def to_info(self, *, is_whole: bool) -> JsonObject:
        """Return the points and what their values are. is_whole: all points; else only the newest ones.

        started: when this server was started, in seconds since 1970. The ids of another server are other ones.
        """
        points = list(self._points) if is_whole else list(self._points)[-_NUM_RECENT:]
        return {"started": self._started, "fields": list(FIELDS), "points": points}

    def note(self, now: float) -> None:
        """Add a point if it is time for one. now: monotonic seconds."""
        if self._noted_at is None:
            self._noted_at = now
        elapsed_s = now - self._noted_at
        if elapsed_s >= INTERVAL_S:
            self._noted_at = now
            self._points.append(self._point(now, elapsed_s))

    def _point(self, now: float, elapsed_s: float) -> Point:
        before, after = self._before, self._counts()
        self._before = after
        grown = {name: after.totals[name] - before.totals[name] for name in after.totals}
        num_batches, num_tokens = grown["batches"], grown["tokens"]
        self._num_points += 1
        return [
            self._num_points,
            round(time.time(), 1),
            *(round(grown[name] / elapsed_s, 2) for name in ("requests", "texts", "tokens")),
            _share(grown["padding"], grown["padding"] + num_tokens),
            *(round(grown[name] / elapsed_s, 2) for name in ("truncated", "cancelled")),
            *self._gauges(now),
            round(grown["texts"] / num_batches, 1) if num_batches else None,
            round(grown["fill"] / num_batches, 4) if num_batches else None,
            *(_quantile(q, after.stages[i] - before.stages[i]) for i in range(len(_STAGES)) for q in _QUANTILES),
            {code: int(n) for code in after.errors if (n := after.errors[code] - before.errors[code])},
            [
                (view.state(self._clock.now), _share(after.busy[name] - before.busy[name], elapsed_s) or 0.0)
                for name, view in self._views.items()
            ],
        ]

    def _gauges(self, now: float) -> list[float | None]:
        memory = self._scheduler.admission.memory
        return [
            self._scheduler.num_waiting,
            round(self._scheduler.oldest_age_s(now), 3),
            self._scheduler.num_jobs,
            _share(memory.held, memory.capacity),
        ]

    def _counts(self) -> _Counts:
        return _Counts(
            {name: counter.value for name, counter in self._rates.items()}
            | {"fill": self._metrics.batch_fill.total},
            [np.array(stage.counts) for stage in self._stages],
            self._metrics.errors.by_first_label(),
            self._metrics.busy.by_first_label(),
        )


def _share(part: float, whole: float) -> float | None:
    return round(min(1.0, part / whole), 4) if whole > 0 else None


def _quantile(q: float, counts: BucketCounts) -> float | None:
    """Return a quantile of the seconds that were counted in the buckets SECONDS, as Prometheus estimates it."""
    reached = counts.cumsum()
    if not reached[-1]:
        return None
    place = int(np.searchsorted(reached, q * reached[-1]))
    if place == len(SECONDS):
        return float(SECONDS[-1])
    lower = SECONDS[place - 1] if place else 0.0
    below = reached[place - 1] if place else 0
    return round(float(lower + (SECONDS[place] - lower) * (q * reached[-1] - below) / counts[place]), 5)
