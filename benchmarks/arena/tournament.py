"""The rounds: which system runs when, and what is recorded of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from bert_serving.protocol import Rows

from benchmarks.arena import texts
from benchmarks.arena.environments import NotInstalledError, python_of, versions_of
from benchmarks.arena.in_process import Driver, LeftOutError
from benchmarks.arena.kinds import Running, System
from benchmarks.arena.machine import PACKAGES
from benchmarks.arena.models import Model
from benchmarks.arena.results import Closeness, LeftOut, Measurement, Results
from benchmarks.arena.systems import REFERENCE
from benchmarks.arena.workloads import WORKLOADS, Bout, Scale, warm_up

_CLOSENESS_SEED = 7  # texts that no workload measures
_REASON = 300  # characters of a reason in the results
_NUM_SAMPLE = 96  # with which a driver chooses its best way


def order(systems: Sequence[System], round_: int) -> list[System]:
    """Return the systems in the order of a round: every other round goes backwards."""
    return list(systems) if round_ % 2 == 0 else list(reversed(systems))


def cosines(rows: Rows, reference: Rows) -> tuple[float, float]:
    """Return the smallest and the mean cosine of rows with those of the reference."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
    found = (rows * reference).sum(1) / lengths
    return float(found.min()), float(found.mean())


class Tournament:
    """Measures systems with one model, and adds what it finds to the results.

    save: called after each system, so that a run that is stopped leaves what it found.
    """

    def __init__(
        self, model: Model, workloads: Sequence[str], scale: Scale, results: Results, save: Callable[[], None]
    ) -> None:
        self._model, self._workloads, self._scale = model, workloads, scale
        self._results, self._save = results, save
        self._chosen: dict[str, dict[str, Any]] = {}
        self._out: set[str] = set()
        self._close_texts = texts.natural(scale.close, seed=_CLOSENESS_SEED)
        self._vectors: dict[str, Rows] = {}

    def run(self, systems: Sequence[System], rounds: int) -> None:
        """Measure every system in every round, then compare the vectors."""
        for round_ in range(rounds):
            for system in order(systems, round_):
                if system.name not in self._out:
                    self._measure(system, round_)
                    self._save()
        self._compare()
        self._save()

    def _measure(self, system: System, round_: int) -> None:
        start = perf_counter()
        try:
            chosen = self._chosen.get(system.name, {})
            with system.start(self._model, texts.natural(_NUM_SAMPLE, seed=5), chosen) as running:
                self._record_about(system, running)
                if round_ == 0 and not system.own_model:
                    self._vectors[system.name] = running.vectors(self._close_texts)
                bout = Bout(running, self._model, self._scale)
                warm_up(bout)
                for name in self._workloads:
                    for workload, values in WORKLOADS[name](bout):
                        self._results.measurements.append(
                            Measurement(self._model.name, system.name, workload, round_, values)
                        )
                if running.ran:
                    self._results.systems[system.name]["ran"] = running.ran
        except (LeftOutError, NotInstalledError, RuntimeError, OSError) as error:
            self._out.add(system.name)
            said = " ".join(str(error).split()) or type(error).__name__
            reason = said.replace(str(Path.home()), "~")[:_REASON]
            self._results.left_out.append(LeftOut(self._model.name, system.name, reason))
            _say(f"round {round_ + 1}: {system.name} is left out: {reason}")
        else:
            _say(f"round {round_ + 1}: {system.name}, {perf_counter() - start:.0f} s")

    def _record_about(self, system: System, running: Running) -> None:
        if isinstance(running, Driver):
            self._chosen[system.name] = running.facts.get("chosen", {})
        if system.name not in self._results.systems:
            name = system.environment or "this project"
            self._results.systems[system.name] = {**system.about(), "environment": name}
            self._results.about["environments"].setdefault(
                name, versions_of(python_of(system.environment), PACKAGES)
            )
        if self._chosen.get(system.name):
            self._results.systems[system.name].setdefault("chosen", {})[self._model.name] = self._chosen[
                system.name
            ]

    def _compare(self) -> None:
        reference = self._vectors.get(REFERENCE)
        if reference is None:
            return
        for name, rows in self._vectors.items():
            worst, mean = cosines(rows, reference)
            self._results.closeness.append(Closeness(self._model.name, name, len(rows), worst, mean))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
