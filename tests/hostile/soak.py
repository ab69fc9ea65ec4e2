"""Serves mixed clients that come and go for half an hour, and checks that nothing grows.

    make soak             or: python -m tests.hostile.soak [--minutes 30]

Samples the memory, the descriptors and the threads of every process of the server, and the p50 and p99 of a client
that sends one short text again and again. Fits a line to each of these series. The exit code is 1 if a client saw
a fault, or if a line rises by more than its tolerance over the whole run. The result is written to
benchmarks/results/soak.json, and its summary is printed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from bert_serving.server.settings import own_version

from benchmarks.common import cpu_name
from tests.hostile.checked_clients import CheckedClients, Pool
from tests.hostile.client_threads import ClientThreads
from tests.hostile.scripts import end_on_sigterm, finish, parser_of, print_head
from tests.hostile.series import Series, Trend
from tests.hostile.target import Family, Target, rss_mb
from tests.hostile.victim import Calls, Victim
from tests.support.running_server import RunningServer, is_alive

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "soak.json"
SERVER_FLAGS = ("-num_worker", 2, "-cpu")
_SAMPLE_S = 2.0
_VISIT_S = (3.0, 15.0)  # how long the clients of each of the two groups stay
_LIMIT_S = 120.0
_MAX_FAULTS = 20  # so many are written down


@dataclass(frozen=True)
class Record:
    """What a run gave: medians of each period by name, faults, and the number of answered requests."""

    medians: dict[str, list[float]]
    faults: list[str]
    num_answered: int


def soak(target: Target, seconds: float, period_s: float) -> Record:
    """Run clients that come and go beside a victim for some seconds."""
    family, pool, series = Family(target), Pool.from_server(target), Series(period_s)
    before = family.members()
    visitors = Visitors(target, pool)
    until = time.monotonic() + seconds
    with Victim(target, _LIMIT_S) as victim, visitors:
        next_period, num_seen = time.monotonic() + period_s, [0, 0]
        while time.monotonic() < until:
            time.sleep(_SAMPLE_S)
            _sample(family, series)
            if time.monotonic() >= next_period or time.monotonic() >= until:
                next_period += period_s
                num_seen = [_add_times(series, *each) for each in zip(victim.calls, num_seen, strict=True)]
    num_answered = visitors.num_answered + sum(len(calls.seconds) for calls in victim.calls)
    replaced = [f"{name} was replaced" for name, process in before.items() if not is_alive(process)]
    return Record(series.medians(), visitors.faults + victim.errors + replaced, num_answered)


def _sample(family: Family, series: Series) -> None:
    for name, process in family.members().items():
        with suppress(psutil.NoSuchProcess):
            series.add(f"{name} memory MiB", rss_mb(process))
            series.add(f"{name} descriptors", process.num_fds())
            series.add(f"{name} threads", process.num_threads())


def _add_times(series: Series, calls: Calls, num_seen: int) -> int:
    """Add the percentiles of the calls since num_seen; return the number of calls so far."""
    recent = Calls(calls.name, calls.seconds[num_seen:])
    if recent.seconds:
        for percent in (50, 99):
            series.add(f"{calls.name} p{percent} ms", recent.percentile_ms(percent))
    return num_seen + len(recent.seconds)


class Visitors(ClientThreads):
    """Two groups of clients, inside its context. Each group stays for some seconds; then a new one comes."""

    def __init__(self, target: Target, pool: Pool) -> None:
        self._target, self._pool = target, pool
        super().__init__()
        self._threads = [threading.Thread(target=self._receive, args=(stay,)) for stay in _VISIT_S]
        self.num_answered = 0
        self.faults: list[str] = []

    def _receive(self, stay_s: float) -> None:
        while not self._should_stop.is_set():
            with CheckedClients(self._target, self._pool, _LIMIT_S) as clients:
                self._should_stop.wait(stay_s)
            self.num_answered += clients.num_answered
            self.faults += clients.faults


def main() -> None:
    """Run the soak, write the result, and print its summary."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    args = parser.parse_args()
    end_on_sigterm()

    with RunningServer(*SERVER_FLAGS) as server:
        target = Target.of(server.wait_ready())
        record = soak(target, args.minutes * 60, period_s=min(60.0, 6 * args.minutes))
    trends = [Trend.of(name, values) for name, values in record.medians.items()]
    faults = record.faults[:_MAX_FAULTS] + [str(trend) for trend in trends if not trend.is_flat]
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    counts = f"{record.num_answered} requests, {len(record.faults)} faults"
    summary = f"{args.minutes:g} minutes on {machine}: {counts}"
    _write(summary, trends, record.medians, faults)
    print(f"{summary}\n")
    print_head("value", "at first", "at last")
    for trend in trends:
        print(f"| {trend.name} | {trend.first:.1f} | {trend.last:.1f} |")
    finish(faults)


def _write(summary: str, trends: list[Trend], medians: dict[str, list[float]], faults: list[str]) -> None:
    content = {
        "summary": summary,
        "version": own_version(),
        "faults": faults,
        "ends": {trend.name: [round(trend.first, 2), round(trend.last, 2)] for trend in trends},
        "medians": medians,
    }
    lines = json.dumps(content, indent=1)
    one_line_for_a_list = re.sub(r"\[[^][]*]", lambda found: " ".join(found[0].split()), lines)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(one_line_for_a_list + "\n")


if __name__ == "__main__":
    main()
