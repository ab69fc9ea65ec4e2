"""What the scripts of this package share: their arguments, and how they end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tests.hostile.victim import Calls

CALLS_HEAD = "way | calls | errors | p50 ms | p99 ms | max ms"


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the docstring of a script as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def end_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that the script ends its server and its other processes before itself."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def print_head(*columns: str) -> None:
    """Print the head of a Markdown table. A column may hold several columns, separated by |."""
    row = " | ".join(columns)
    print(f"| {row} |\n" + "|---" * (row.count("|") + 1) + "|", flush=True)


def delays(calls: Sequence[Calls], max_p99_ms: float) -> list[str]:
    """Return a line for each kind of call whose p99 is above the limit."""
    found = {each.name: each.percentile_ms(99) for each in calls}
    return [
        f"{name}: p99 {p99:.0f} ms, the limit is {max_p99_ms:.0f}"
        for name, p99 in found.items()
        if p99 > max_p99_ms
    ]


def finish(faults: Sequence[str]) -> NoReturn:
    """Print the faults, and end with exit code 1 if there are any."""
    print("\n".join(["", *faults] if faults else ["", "no faults"]))
    sys.exit(bool(faults))
