"""The records of a run, as they are in its JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

#: Names of values. Rates are sentences/s; times are milliseconds.
RATE, P50, P99, MEAN = "sentences_per_s", "p50_ms", "p99_ms", "mean_ms"
#: The rate of the bulk job beside interactive users.
JOB_RATE = "job_sentences_per_s"
#: CPU time in µs a request: of the server's own process, which is the broker, and of the process of all clients.
SERVER_CPU, CLIENT_CPU = "server_cpu_us", "client_cpu_us"

Values = dict[str, float]


@dataclass(frozen=True)
class Measurement:
    """The values of one workload, for one system in one round."""

    model: str
    system: str
    workload: str
    round: int
    values: Values


@dataclass(frozen=True)
class Closeness:
    """The worst and the mean cosine of a system's vectors with those of sentence-transformers in float32."""

    model: str
    system: str
    texts: int
    worst: float
    mean: float


@dataclass(frozen=True)
class LeftOut:
    """A system that was not measured, and why."""

    model: str
    system: str
    reason: str


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and the smallest and largest round."""

    median: float
    low: float
    high: float


@dataclass
class Results:
    """All that a run found.

    about: machine, versions, options. systems: for each system, how it was called.
    """

    about: dict[str, Any]
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    closeness: list[Closeness] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a JSON file that `save` wrote."""
        found = json.loads(path.read_text("utf-8"))
        return cls(
            about=found["about"],
            systems=found["systems"],
            measurements=[Measurement(**each) for each in found["measurements"]],
            closeness=[Closeness(**each) for each in found["closeness"]],
            left_out=[LeftOut(**each) for each in found["left_out"]],
        )

    def models(self) -> list[str]:
        """Return the models that were measured, in the order of the run."""
        return list(dict.fromkeys(each.model for each in self.measurements))

    def workloads(self, model: str) -> list[str]:
        """Return the workloads that were measured with a model, in the order of the run."""
        return list(dict.fromkeys(each.workload for each in self.measurements if each.model == model))

    def rounds(self, model: str, system: str, workload: str, value: str) -> dict[int, float]:
        """Return a value in each round in which it was measured: round -> value."""
        return {
            each.round: each.values[value]
            for each in self.measurements
            if (each.model, each.system, each.workload) == (model, system, workload) and value in each.values
        }

    def spread(self, model: str, system: str, workload: str, value: str) -> Spread | None:
        """Return the spread of a value over the rounds, or None if it was not measured."""
        found = self.rounds(model, system, workload, value)
        return spread(found.values()) if found else None


def spread(values: Iterable[float]) -> Spread:
    """Return the median, the smallest and the largest of one or more values."""
    found = sorted(values)
    return Spread(median(found), found[0], found[-1])


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that is not exceeded by this percentage of the values (nearest rank)."""
    found = sorted(values)
    rank = -(-len(found) * percent // 100)  # rounded up
    return found[max(0, int(rank) - 1)]


def latencies(seconds: Iterable[float]) -> Values:
    """Return the median, the 99th percentile and the mean of times in seconds, as milliseconds."""
    found = [1000 * each for each in seconds]
    return {P50: percentile(found, 50), P99: percentile(found, 99), MEAN: sum(found) / len(found)}
