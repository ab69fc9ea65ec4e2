"""Plots as SVG, written without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.arena.results import Spread

_FONT = 'font-family="system-ui, sans-serif"'
_OURS, _PEER, _INK, _GRID = "#1f6feb", "#9aa4ae", "#24292f", "#d8dee4"
_SERIES = ("#1f6feb", "#0b3d91", "#d1570c", "#8250df", "#1a7f37", "#bf3989")
_WIDTH, _LABELS, _ROW, _TOP = 860, 250, 24, 64


@dataclass(frozen=True)
class Bar:
    """A bar, with a thin line from the smallest to the largest round."""

    label: str
    value: Spread
    is_ours: bool


@dataclass(frozen=True)
class Line:
    """A line through points (x, y). number: chooses the colour, so a system has the same one in every plot."""

    label: str
    points: Sequence[tuple[float, float]]
    number: int = 0


def bars(title: str, subtitle: str, rows: Sequence[Bar]) -> str:
    """Return a plot with one horizontal bar for each row, in the order of the rows. This project's are blue."""
    height = _TOP + _ROW * len(rows) + 16
    scale = (_WIDTH - _LABELS - 90) / max(row.value.high for row in rows)
    parts = [_head(title, subtitle, height)]
    for number, row in enumerate(rows):
        y = _TOP + number * _ROW
        middle, colour = y + _ROW / 2 - 2, _OURS if row.is_ours else _PEER
        low, end, high = (_LABELS + scale * value for value in (row.value.low, row.value.median, row.value.high))
        parts += [
            _text(_LABELS - 8, middle + 4, row.label, anchor="end", weight="600" if row.is_ours else "400"),
            f'<rect x="{_LABELS}" y="{y}" width="{end - _LABELS:.1f}" height="{_ROW - 6}" fill="{colour}"/>',
            f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="{_INK}"/>',
            _text(high + 6, middle + 4, _number(row.value.median)),
        ]
    return "\n".join([*parts, "</svg>\n"])


def lines(title: str, subtitle: str, ticks: Sequence[tuple[float, str]], series: Sequence[Line]) -> str:
    """Return a plot with one line for each series, and its name at its end. ticks: (x, label); x are positions."""
    height, left, right, bottom = 420, 60, 200, 40
    xs = [x for x, _ in ticks]
    wide, high = _WIDTH - left - right, height - _TOP - bottom
    top = max(y for line in series for _, y in line.points)

    def place(x: float, y: float) -> tuple[float, float]:
        span = (max(xs) - min(xs)) or 1.0
        return left + wide * (x - min(xs)) / span, _TOP + high * (1 - y / top)

    parts = [_head(title, subtitle, height)]
    for part in range(5):
        value = top * part / 4
        _, y = place(min(xs), value)
        parts += [
            f'<line x1="{left}" y1="{y:.1f}" x2="{left + wide}" y2="{y:.1f}" stroke="{_GRID}"/>',
            _text(left - 6, y + 4, _number(value), anchor="end"),
        ]
    parts += [_text(place(x, 0)[0], height - bottom + 20, label, anchor="middle") for x, label in ticks]
    labels_y: list[float] = []
    for line in sorted(series, key=lambda line: -line.points[-1][1]):
        colour = _SERIES[line.number % len(_SERIES)]
        places = [place(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        x, y = places[-1]
        y = max([y, *(other + 15 for other in labels_y[-1:])])  # names must not lie over each other
        labels_y.append(y)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
            _text(x + 8, y + 4, line.label, colour=colour),
        ]
    return "\n".join([*parts, "</svg>\n"])


def _head(title: str, subtitle: str, height: float) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" {_FONT} '
            f'font-size="13" role="img" aria-label="{escape(title)}">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="26" font-size="17" font-weight="600" fill="{_INK}">{escape(title)}</text>',
            _text(16, 46, subtitle, colour="#57606a"),
        ]
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400", colour: str = _INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
