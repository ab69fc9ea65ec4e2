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
_ANY_WIDTH = 1000
# What is shown of a worker: its facts, and whether the busy share is drawn as a bar too. The first that fits.
_WORKER_COLUMNS = (
    (("name", "state", "device", "dtype", "forward", "parity"), True),
    (("name", "state", "device", "forward"), True),
    (("name", "state"), True),
    (("name", "state"), False),
)
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


class _FirstThatFits:
    """The first of several tables that is not too wide for the terminal; the last one if all are.

    slack: how many columns narrower than it would like to be a table may be.
    """

    def __init__(self, *tables: Table, slack: int = 0) -> None:
        self._tables = tables
        self._slack = slack

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wide = options.update_width(_ANY_WIDTH)  # without this, no table would be wider than the terminal
        most = options.max_width + self._slack
        fitting = (table for table in self._tables if Measurement.get(console, wide, table).maximum <= most)
        yield next(fitting, self._tables[-1])


def _rates(history: History) -> RenderableType:
    wide = _table("per second", "now", "", _CURVE_HEADER, "highest")
    narrow = _table("per second", "now", _CURVE_HEADER, is_narrow=True)
    for total in _TOTALS:
        curve = history.curve(total, _CURVE_COLUMNS)
        highest = max((value for value in curve if value is not None), default=None)
        now, drawn = _number(history.rate(total)), _Curve(history, total)
        wide.add_row(total, now, "", drawn, _number(highest))
        narrow.add_row(total, now, drawn)
    return _FirstThatFits(wide, narrow, slack=_CURVE_COLUMNS - len(_CURVE_HEADER))


class _Curve:
    """The rates of a total in the last minutes, as wide as its column. Rich would cut off the newest ones."""

    def __init__(self, history: History, total: Total) -> None:
        self._history = history
        self._total: Total = total

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(_CURVE_HEADER), _CURVE_COLUMNS).with_maximum(options.max_width)

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
    tables = []
    for names, has_bar in _WORKER_COLUMNS:
        busy = f"busy, last {RATE_S:.0f} s" if has_bar else "busy"
        table = _table("worker", *names[1:], busy, is_narrow=not has_bar)
        for worker in newest.info.get("workers", ()):
            facts = [Text(printable(worker.get(name, _UNKNOWN))) for name in names]
            table.add_row(*facts, _busy(history, worker, has_bar=has_bar))
        tables.append(table)
    return _FirstThatFits(*tables)


def _busy(history: History, worker: Mapping[str, Any], *, has_bar: bool) -> str:
    share = history.busy_share(str(worker.get("name")))
    if share is None:
        return _UNKNOWN
    filled = round(share * _BUSY_COLUMNS)
    bar = f"{'█' * filled}{'░' * (_BUSY_COLUMNS - filled)} " if has_bar else ""
    return f"{bar}{share:4.0%}"


def _table(*headers: str, is_narrow: bool = False) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0) if is_narrow else (0, 2, 0, 1), header_style="bold")
    for header in headers:
        is_number = header in ("now", "highest")
        is_curve = header == _CURVE_HEADER  # in a narrow terminal, only this column becomes narrower
        table.add_column(header, justify="right" if is_number else "left", no_wrap=not is_curve)
    return table


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}"


def _milliseconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds * 1000:,.1f} ms"
