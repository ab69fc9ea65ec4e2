"""The command: python -m benchmarks.arena. The package's docstring explains it."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.arena import __doc__ as about
from benchmarks.arena import machine, report
from benchmarks.arena.kinds import System
from benchmarks.arena.models import MODELS, find_model
from benchmarks.arena.results import Results
from benchmarks.arena.systems import SYSTEMS
from benchmarks.arena.tournament import Tournament
from benchmarks.arena.workloads import QUICK, WORKLOADS, Scale

_RESULTS = Path(__file__).parents[1] / "results"


def chosen_systems(words: list[str] | None) -> list[System]:
    """Return the systems with these names, ignoring case; all for None.

    A word that is no name stands for all names that begin with it. Exits if there are none.
    """
    if words is None:
        return list(SYSTEMS.values())
    chosen: set[str] = set()
    for word in words:
        starting = [name for name in SYSTEMS if name.lower().startswith(word.lower())]
        exact = [name for name in starting if name.lower() == word.lower()]
        if not starting:
            raise SystemExit(f"no system begins with {word!r}; --list shows all")
        chosen.update(exact or starting)
    return [system for name, system in SYSTEMS.items() if name in chosen]


def main() -> None:
    """Run the arena; write the JSON file, the table and the plots."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arena", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["demo"])
    parser.add_argument("--systems", nargs="+", help="names, or their beginnings; --list shows the names")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bulk", type=int, help="texts of a bulk job, for example 100000")
    parser.add_argument("--quick", action="store_true", help="tiny counts, to see that everything runs")
    parser.add_argument("--out", type=Path, default=_RESULTS / "arena.json", help="the JSON file")
    parser.add_argument("--list", action="store_true", help="list the systems")
    args = parser.parse_args()
    systems = chosen_systems(args.systems)
    if args.list:
        print(*(system.name for system in systems), sep="\n")
        return
    scale = QUICK if args.quick else Scale()
    if args.bulk is not None:
        scale = replace(scale, bulk=args.bulk)
    options = {"rounds": args.rounds, "workloads": args.workloads, "quick": args.quick, "bulk": args.bulk}
    results = Results({**machine.describe(), "options": options})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the system that runs is stopped
    gc.freeze()  # what is loaded now need not be looked at again in the middle of a measurement
    for name in args.model:
        tournament = Tournament(find_model(name), args.workloads, scale, results, lambda: results.save(args.out))
        tournament.run(systems, args.rounds)
    print(report.write(args.out))


if __name__ == "__main__":
    main()
