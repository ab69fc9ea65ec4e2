"""The terminal dashboard of bert-serving-status -watch, drawn with rich (extra `watch`).

`screen` decides what is shown. It prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .readings import RATE_S, RECENT_S, History, Reading, Total, why_not_ready
from .status_table import Snapshot, duration, printable

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_COLUMNS = 50
_CURVE_HEADER = "last 5 minutes"
_BUSY_COLUMNS = 10
_UNKNOWN = "-"
_TOTALS: tuple[Total, ...] = ("requests", "texts", "tokens")


def screen(history: History, problem: str | None, *, address: str, now: float) -> RenderableType:
    """Return the whole screen.

    problem: why the newest request for the status failed; None if it did not. now: monotonic seconds.
    """
    newest = history.newest
    parts = [_head(newest, problem, address, now)]
    if newest is not None:
        parts += [_rates(history), _waiting(history, newest), _workers(history, newest)]
    return Group(*parts, Text("q or Ctrl-C ends this", style="dim"))


def sparkline(values: Sequence[float | None]) -> str:
    """Return one character for each value, from the lowest bar for 0 to the highest one for the largest value."""
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(_bar(value, top) for value in values)


def _bar(value: float | None, top: float) -> str:
    if value is None:
        return " "
    return _BARS[0] if top <= 0 else _BARS[min(round(value / top * (len(_BARS) - 1)), len(_BARS) - 1)]


def _head(newest: Reading | None, problem: str | None, address: str, now: float) -> RenderableType:
    if problem is not None:
        # Otherwise the last state of a server that is gone would look like its present one.
        seen = "" if newest is None else f"; what is below was read {now - newest.at:.0f} s ago"
        return Panel(Text(printable(f"no reply: {problem}{seen}")), title=printable(address), border_style="red")
    if newest is None:
        return Panel(Text("connecting ..."), title=printable(address), border_style="yellow")
    info = newest.info
    state, style = ("ready", "green") if info.get("ready") else ("not ready", "yellow")
    facts = f"up {duration(Snapshot(info, newest.at).uptime_s)}, version {info.get('version', '?')}"
    lines = [f"{state}, {facts}", f"model {info.get('model_dir', _UNKNOWN)}", *why_not_ready(info)]
    return Panel(Text("\n".join(map(printable, lines))), title=printable(address), border_style=style)


def _rates(history: History) -> RenderableType:
    table = _table("per second", "now", "", _CURVE_HEADER, "highest")
    for total in _TOTALS:
        curve = history.curve(total, _CURVE_COLUMNS)
        highest = max((value for value in curve if value is not None), default=None)
        table.add_row(total, _number(history.rate(total)), "", _Curve(history, total), _number(highest))
    return table


class _Curve:
    """The rates of a total in the last minutes, as wide as its column. Rich would cut off the newest ones."""

    def __init__(self, history: History, total: Total) -> None:
        self._history = history
        self._total: Total = total

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, _CURVE_COLUMNS).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = min(options.max_width, _CURVE_COLUMNS)
        yield Text(sparkline(self._history.curve(self._total, width)), no_wrap=True)


def _waiting(history: History, newest: Reading) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    queue = f"{newest.queue_texts:,.0f} texts, the oldest waits {newest.queue_age_s:.1f} s"
    latency = ", ".join(f"p{100 * each:.0f} {_milliseconds(history.latency_s(each))}" for each in (0.5, 0.99))
    table.add_row("queue", queue)
    table.add_row("latency", f"{latency} in the last {RECENT_S:.0f} s")
    table.add_row("errors", Text(_errors(history, newest)))
    return Panel(table, border_style="dim")


def _errors(history: History, newest: Reading) -> str:
    recent = ", ".join(f"{printable(code)} {count:,}" for code, count in history.recent_errors().items())
    return f"{sum(newest.errors.values()):,.0f} since the start, in the last {RECENT_S:.0f} s: {recent or 'none'}"


def _workers(history: History, newest: Reading) -> RenderableType:
    table = _table("worker", "state", "device", "dtype", "forward", "parity", f"busy, last {RATE_S:.0f} s")
    for worker in newest.info.get("workers", ()):
        table.add_row(*map(Text, map(printable, _worker(history, worker))))
    return table


def _worker(history: History, worker: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "state", "device", "dtype", "forward", "parity"):
        yield str(worker.get(key, _UNKNOWN))
    share = history.busy_share(str(worker.get("name")))
    filled = round((share or 0.0) * _BUSY_COLUMNS)
    yield _UNKNOWN if share is None else f"{'█' * filled}{'░' * (_BUSY_COLUMNS - filled)} {share:4.0%}"


def _table(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 1), header_style="bold")
    for header in headers:
        is_number = header in ("now", "highest")
        is_curve = header == _CURVE_HEADER  # in a narrow terminal, only this column becomes narrower
        table.add_column(header, justify="right" if is_number else "left", no_wrap=not is_curve)
    return table


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}"


def _milliseconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds * 1000:,.1f} ms"
