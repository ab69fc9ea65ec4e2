"""The table of targets: ratios between measurements of one run, beside what this project aims at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.arena.results import JOB_RATE, P50, P99, RATE, SERVER_CPU, Results, Spread, spread
from benchmarks.arena.systems import OWN, REFERENCE

_CLOSE = 0.999  # an int8 system counts as ours only if every cosine is at least this

_ENCODER = tuple(each.name for each in OWN if each.name.startswith("encoder"))
_BERT_CLIENT = tuple(each.name for each in OWN if each.name.startswith("BertClient"))
_HTTP = tuple(each.name for each in OWN if each.name.startswith("HTTP"))


@dataclass(frozen=True)
class Side:
    """One side of a ratio: the best of some systems, in one value of one workload."""

    systems: Sequence[str]
    workload: str
    value: str


@dataclass(frozen=True)
class Target:
    """A ratio, or a value if `bottom` is None, and its goal."""

    title: str
    goal: float
    at_least: bool
    top: Side
    bottom: Side | None = None


@dataclass(frozen=True)
class Row:
    """What a run found for a target.

    systems: those whose values were taken. measured: None if one of them was not measured.
    """

    target: Target
    measured: Spread | None = None
    systems: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the goal."""
        if self.measured is None:
            return False
        if self.target.at_least:
            return self.measured.median >= self.target.goal
        return self.measured.median <= self.target.goal


def _bulk(*systems: str) -> Side:
    return Side(systems, "bulk", RATE)


def _one(*systems: str) -> Side:
    return Side(systems, "one sentence", P50)


def _not_int8(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if "int8" not in name)


_BERT, _REFERENCE, _OPENVINO, _INFINITY = "BertClient", REFERENCE, "OpenVINO bfloat16", "Infinity torch"
_SAME_HTTP = "HTTP base64"  # the same requests as Infinity's
_BUSY = "one sentence, one core busy"

TARGETS = [
    Target(
        "bulk: BertClient / sentence-transformers float32",
        4,
        True,
        _bulk(*_not_int8(_BERT_CLIENT)),
        _bulk(_REFERENCE),
    ),
    Target("the same in int8", 5, True, _bulk("BertClient int8"), _bulk(_REFERENCE)),
    Target("bulk: best of ours / OpenVINO bfloat16", 2, True, _bulk(*_ENCODER, *_BERT_CLIENT), _bulk(_OPENVINO)),
    Target(
        "one sentence, time: best of ours in process / OpenVINO bfloat16",
        0.8,
        False,
        _one(*_ENCODER),
        _one(_OPENVINO),
    ),
    *(
        Target(
            f"{workload}, sentences/s: HTTP base64 / Infinity torch",
            goal,
            True,
            Side([_SAME_HTTP], workload, RATE),
            Side([_INFINITY], workload, RATE),
        )
        for workload, goal in (("4 clients, 64 texts", 7), ("16 clients", 6))
    ),
    Target("one sentence, time: Infinity torch / HTTP base64", 4, True, _one(_INFINITY), _one(_SAME_HTTP)),
    Target(
        "one sentence, time: BertClient / sentence-transformers float32",
        0.35,
        False,
        _one(*_BERT_CLIENT),
        _one(_REFERENCE),
    ),
    Target("one sentence, time: HTTP / sentence-transformers float32", 0.5, False, _one(*_HTTP), _one(_REFERENCE)),
    Target(
        "one sentence, time: one core busy / at rest, BertClient", 2, False, Side([_BERT], _BUSY, P50), _one(_BERT)
    ),
    *(
        Target(
            f"{count} clients / bulk, BertClient", 0.9, True, Side([_BERT], f"{count} clients", RATE), _bulk(_BERT)
        )
        for count in (32, 64, 256)
    ),
    Target("bulk: BertClient / encoder in process", 0.95, True, _bulk(*_BERT_CLIENT), _bulk(*_ENCODER)),
    *(
        Target(f"bulk: HTTP {name} / BertClient", goal, True, _bulk(f"HTTP {name}"), _bulk(_BERT))
        for name, goal in (("raw", 0.95), ("base64", 0.9), ("JSON", 0.75))
    ),
    Target(
        "p99 of one sentence beside a bulk job, BertClient, ms",
        150,
        False,
        Side([_BERT], "bulk beside 8 users", P99),
    ),
    Target("rate of that job / bulk", 0.5, True, Side([_BERT], "bulk beside 8 users", JOB_RATE), _bulk(_BERT)),
    Target(
        "CPU of the server's own process a request, 64 clients, µs",
        40,
        False,
        Side([_BERT], "64 clients", SERVER_CPU),
    ),
]


def rows(results: Results, model: str) -> list[Row]:
    """Return the rows of the table for a model, in the order of TARGETS."""
    exact = {
        each.system
        for each in results.closeness
        if each.model == model and each.worst < _CLOSE and "int8" in each.system
    }
    return [_row(results, model, target, exact) for target in TARGETS]


def _row(results: Results, model: str, target: Target, inexact: set[str]) -> Row:
    top = _best(results, model, target.top, inexact)
    if top is None:
        return Row(target)
    if target.bottom is None:
        return Row(target, spread(_rounds(results, model, top, target.top).values()), (top,))
    bottom = _best(results, model, target.bottom, set())
    if bottom is None:
        return Row(target)
    above, below = _rounds(results, model, top, target.top), _rounds(results, model, bottom, target.bottom)
    ratios = [above[round_] / below[round_] for round_ in above.keys() & below.keys() if below[round_]]
    return Row(target, spread(ratios) if ratios else None, (top, bottom))


def _best(results: Results, model: str, side: Side, inexact: set[str]) -> str | None:
    """Return the system with the best median, or None if none of them was measured."""
    found = {
        name: results.spread(model, name, side.workload, side.value)
        for name in side.systems
        if name not in inexact
    }
    medians = {name: each.median for name, each in found.items() if each is not None}
    better: Callable[..., str] = max if side.value in {RATE, JOB_RATE} else min
    return better(medians, key=medians.__getitem__) if medians else None


def _rounds(results: Results, model: str, system: str, side: Side) -> dict[int, float]:
    return results.rounds(model, system, side.workload, side.value)
