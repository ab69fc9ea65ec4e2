"""Measures what a bad neighbour does to another user of the same server.

    make neighbours       or: python -m tests.hostile.neighbours [--seconds 20] [--only TEXT]

For each bad neighbour, it starts a server with the demo model. Beside the neighbour, a victim sends one short text
again and again, over ZeroMQ and over HTTP. The script prints a row for each neighbour and each way. The exit code
is 1 if the victim got an error, if its p99 was above one second, or if the server lost a process or grew too much.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import TypeAlias

from benchmarks.common import cpu_name
from tests.hostile import http_neighbours, zeromq_neighbours
from tests.hostile.scripts import CALLS_HEAD, delays, end_on_sigterm, finish, parser_of, print_head
from tests.hostile.target import Family, Target
from tests.hostile.victim import Calls, Victim
from tests.support.running_server import RunningServer

#: Attacks the target until a time in monotonic seconds.
Attack: TypeAlias = "Callable[[Target, float], None]"

NEIGHBOURS: dict[str, Attack] = {
    f"{way} {attack.__name__}": attack
    for way, attacks in (("ZeroMQ", zeromq_neighbours.ATTACKS), ("HTTP", http_neighbours.ATTACKS))
    for attack in attacks
}

#: Limits for what the server and its gateway hold for clients, so low that attacks reach them within seconds.
MEMORY_MB = HTTP_MEMORY_MB = 256
SERVER_FLAGS = ("-memory_mb", MEMORY_MB, "-http_memory_mb", HTTP_MEMORY_MB, "-outbox_age", 5)
#: Attacks with requests that need the default limits of memory.
LARGE = ("sends_many_values",)
#: How much both may grow together: those limits, four times -max_message_mb that libzmq may hold, and what libzmq,
#: the parsers of JSON and Python's allocator need for the messages at hand.
MAX_GROWTH_MB = MEMORY_MB + HTTP_MEMORY_MB + 4 * 128 + 300

MAX_P99_MS = 1000.0
_LATE_S = 10.0  # an attack may be inside a call when its time is over
_TIMEOUT_S = 30.0  # a call of the victim that takes longer is an error
_SAMPLE_S = 0.2

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Outcome:
    """What an attack did.

    growth_mb: how much the server and its gateways grew at most. lost: a line for each process that ended.
    """

    calls: list[Calls]
    growth_mb: float
    lost: list[str]

    def faults(self) -> list[str]:
        """Return a line for everything that should not have happened, times excepted."""
        errors = [f"{calls.name}: {error}" for calls in self.calls for error in calls.errors[:3]]
        silent = [f"{calls.name}: no call got an answer" for calls in self.calls if not calls.seconds]
        grown = f"the server grew by {self.growth_mb:.0f} MiB"
        return errors + silent + self.lost + [grown] * (self.growth_mb > MAX_GROWTH_MB)


def attacked(target: Target, attacks: Sequence[Attack], seconds: float, timeout_s: float = _TIMEOUT_S) -> Outcome:
    """Run attacks, each in a process of its own, beside a victim; return the outcome."""
    family = Family(target)
    before, at_first = {p.pid: name for name, p in family.members().items()}, family.memory_mb()
    with Victim(target, timeout_s) as victim:
        have_begun = [_spawn.Event() for _ in attacks]
        attackers = [
            _spawn.Process(target=_attack, args=(attack, target, seconds, has_begun), daemon=True)
            for attack, has_begun in zip(attacks, have_begun, strict=True)
        ]
        for attacker in attackers:
            attacker.start()
        for has_begun in have_begun:
            assert has_begun.wait(timeout_s), "an attack has not begun"
        until = time.monotonic() + seconds + _LATE_S
        peak = max(family.memory_mb() for _ in _while_running(attackers, until))
        for attacker in attackers:
            attacker.kill()
            attacker.join()
    after = {p.pid for p in family.members().values()}
    lost = [f"{name} was lost" for pid, name in before.items() if pid not in after]
    return Outcome(victim.calls, peak - at_first, lost)


def _attack(attack: Attack, target: Target, seconds: float, has_begun: Event) -> None:
    """Attack for some seconds. Runs in a process of its own, whose start takes about a second."""
    has_begun.set()
    attack(target, time.monotonic() + seconds)


def _while_running(processes: Sequence[BaseProcess], until: float) -> Iterator[None]:
    yield
    while any(process.is_alive() for process in processes) and time.monotonic() < until:
        time.sleep(_SAMPLE_S)
        yield


def main() -> None:
    """Run the attacks one after another, and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each attack (default: 20)")
    parser.add_argument("--only", default="", help="run only the neighbours whose name contains this text")
    args = parser.parse_args()
    end_on_sigterm()

    print(f"{cpu_name()}, {os.cpu_count()} cores; {args.seconds:g} s beside each neighbour\n")
    print_head("neighbour", CALLS_HEAD, "growth MiB")
    faults = []
    for name in (name for name in NEIGHBOURS if args.only in name):
        flags = () if name.endswith(LARGE) else SERVER_FLAGS
        with RunningServer(*flags) as server:
            outcome = attacked(Target.of(server.wait_ready()), [NEIGHBOURS[name]], args.seconds)
        for calls in outcome.calls:
            print(f"| {name} | {calls.row()} | {outcome.growth_mb:.0f} |", flush=True)
        faults += [f"{name}: {fault}" for fault in outcome.faults() + delays(outcome.calls, MAX_P99_MS)]
    finish(faults)


if __name__ == "__main__":
    main()
