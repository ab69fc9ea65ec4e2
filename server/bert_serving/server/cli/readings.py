"""What bert-serving-status -watch has read from a server: its status and metrics over the last minutes.

Nothing in this file does I/O. The names of the metrics are those of docs/metrics.md; a metric that the server does
not have counts as zero.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families

Total = Literal["requests", "texts", "tokens"]
Sums = Mapping[str, float]

CURVE_S = 300.0  # the time that a curve shows
RECENT_S = 60.0  # the time over which latency and recent errors are measured
RATE_S = 5.0  # the time over which a rate is measured


@dataclass(frozen=True, slots=True)
class Reading:
    """Status and metrics of a server at one moment.

    at: when they arrived, in monotonic seconds. info: the status, JSON. totals: counters by their short names.
    errors: failed requests by code. busy_s: computing time by worker. latency: requests by the upper limit of
    their time in seconds; each count includes those of the smaller limits, as Prometheus does it.
    """

    at: float
    info: Mapping[str, Any]
    totals: Mapping[Total, float]
    errors: Sums
    busy_s: Sums
    latency: Mapping[float, float]
    queue_texts: float
    queue_age_s: float

    def follows(self, other: Reading) -> bool:
        """Whether the server ran without a restart between the other reading and this one."""
        return self.info.get("server_start_time") == other.info.get("server_start_time")


def reading(at: float, info: Mapping[str, Any], metrics_text: str) -> Reading:
    """Return the reading made of a status and of metrics in Prometheus' text format."""
    samples = {
        family.name: [each for each in family.samples if not each.name.endswith("_created")]
        for family in text_string_to_metric_families(metrics_text)
    }

    def sums(name: str, label: str = "", suffix: str = "") -> Counter[str]:
        found: Counter[str] = Counter()
        for sample in samples.get(f"bert_serving_{name}", ()):
            if sample.name.endswith(suffix):
                found[sample.labels.get(label, "")] += sample.value  # type: ignore[assignment]  # a float
        return found

    ages = samples.get("bert_serving_queue_age_seconds", ())
    return Reading(
        at,
        info,
        {"requests": sums("requests")[""], "texts": sums("texts")[""], "tokens": sums("tokens")[""]},
        sums("errors", "code"),
        sums("device_busy_seconds", "worker"),
        {float(le): count for le, count in sums("request_seconds", "le", "_bucket").items()},
        sums("queue_texts")[""],
        max((sample.value for sample in ages), default=0.0),
    )


class History:
    """The readings of the last minutes, the newest one last."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()

    @property
    def newest(self) -> Reading | None:
        """The newest reading; None if there is none yet."""
        return self._readings[-1] if self._readings else None

    def add(self, new: Reading) -> None:
        """Add a reading, and forget those that no curve shows any more."""
        self._readings.append(new)
        while len(self._readings) > 2 and self._readings[0].at < new.at - CURVE_S:  # rates need two
            self._readings.popleft()

    def rate(self, total: Total) -> float | None:
        """Return the growth of a total per second in the last seconds; None if it is not known yet."""
        before, now = self._window(RATE_S)
        return None if before is None else _rate(before, now, total)

    def busy_share(self, worker: str) -> float | None:
        """Return the part of the last seconds in which a worker has computed, 0 to 1; None if not known yet."""
        before, now = self._window(RATE_S)
        if before is None:
            return None
        share = (now.busy_s.get(worker, 0.0) - before.busy_s.get(worker, 0.0)) / (now.at - before.at)
        return min(max(share, 0.0), 1.0)

    def latency_s(self, quantile: float) -> float | None:
        """Return the time within which this part of the last minute's requests had replies; None without any."""
        before, now = self._window(RECENT_S)
        if before is None:
            return None
        return quantile_of(
            {le: count - before.latency.get(le, 0.0) for le, count in now.latency.items()}, quantile
        )

    def recent_errors(self) -> dict[str, int]:
        """Return the failed requests of the last minute, by code; without the codes that did not occur."""
        before, now = self._window(RECENT_S)
        if before is None:
            return {}
        grown = {code: round(count - before.errors.get(code, 0.0)) for code, count in now.errors.items()}
        return {code: count for code, count in grown.items() if count > 0}

    def curve(self, total: Total, width: int) -> list[float | None]:
        """Return the rates of a total in the last minutes, the newest last; None where nothing was read."""
        now = self._readings[-1].at if self._readings else 0.0
        columns: list[list[float]] = [[] for _ in range(width)]
        for before, after in pairwise(self._readings):
            if after.follows(before) and after.at > before.at:
                column = width - 1 - math.floor((now - after.at) * width / CURVE_S)
                columns[max(column, 0)].append(_rate(before, after, total))
        return [sum(column) / len(column) if column else None for column in columns]

    def _window(self, seconds: float) -> tuple[Reading | None, Reading]:
        """Return (the reading at the begin of the last seconds, the newest); None if the server is newer.

        With less than one reading in this time, it is the reading before the newest.
        """
        now = self._readings[-1]
        earlier = [each for each in self._readings if each.at < now.at and now.follows(each)]
        recent = (each for each in earlier if each.at >= now.at - seconds)
        return next(recent, earlier[-1] if earlier else None), now


def _rate(before: Reading, after: Reading, total: Total) -> float:
    return max(0.0, after.totals[total] - before.totals[total]) / (after.at - before.at)


def quantile_of(buckets: Mapping[float, float], quantile: float) -> float | None:
    """Return a quantile of a histogram with cumulative buckets; None if it is empty.

    It lies within its bucket where it would if the bucket's values were spread evenly, as in Prometheus'
    histogram_quantile. In the last bucket, whose upper limit is infinite, it is the lower limit.
    """
    limits = sorted(buckets)
    if not limits or buckets[limits[-1]] <= 0:
        return None
    rank = quantile * buckets[limits[-1]]
    lower = below = 0.0
    for limit in limits:
        if buckets[limit] >= rank and buckets[limit] > below:
            break
        lower, below = limit, buckets[limit]
    return lower if math.isinf(limit) else lower + (limit - lower) * (rank - below) / (buckets[limit] - below)


def why_not_ready(info: Mapping[str, Any]) -> Iterable[str]:
    """Yield why a server is not ready, one reason each; nothing if it is ready."""
    if info.get("ready"):
        return
    waiting = [worker for worker in info.get("workers", ()) if worker.get("state") != "ready"]
    for worker in waiting:
        state = worker.get("state")
        if state == "stale":
            yield f"{worker.get('name')} has computed nothing for a minute"
        else:
            yield f"{worker.get('name')} is {state}"
    if not waiting:
        yield "the server accepts no requests: it is stopping"
