"""Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/.

prometheus_client writes it too, but needs milliseconds, in which the server's loop would do nothing else. So a
metric here has a template, which is written once, and numbers. The loop only collects them; a gateway puts them
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias

from prometheus_client.utils import floatToGoString

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "untyped"]


class Family(Protocol):
    """One or more metrics with all their series."""

    @property
    def template(self) -> str:
        """All lines, with %s instead of each number."""

    def numbers(self) -> Iterable[float]:
        """Return the numbers, in the order of the lines."""


class Snapshot(NamedTuple):
    """The metrics of a process at one moment."""

    template: str
    numbers: list[float]

    def text(self) -> str:
        """Return what Prometheus reads."""
        return self.template % tuple(self.numbers)


class Registry:
    """The metrics of the process, in the order in which they are shown."""

    def __init__(self) -> None:
        self._families: list[Family] = []

    def register(self, *families: Family) -> None:
        """Add metrics after all others."""
        self._families += families

    def snapshot(self) -> Snapshot:
        """Return all metrics."""
        numbers: list[float] = []
        for family in self._families:
            numbers += family.numbers()  # this may change the template
        return Snapshot("".join([family.template for family in self._families]), numbers)


def head(name: str, documentation: str, kind: Kind) -> str:
    """Return the part of a template before the series of a metric."""
    documentation = documentation.replace("\\", r"\\").replace("\n", r"\n").replace("%", "%%")
    return f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n"


def series(name: str, labels: Mapping[str, str]) -> str:
    """Return the part of a template before a number. Labels are sorted by their names."""
    pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
    return f"{name}{{{pairs}}} " if pairs else f"{name} "


def number(value: float) -> str:
    """Return any number as Prometheus reads it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").replace("%", "%%")
