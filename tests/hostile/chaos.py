"""Harms workers and gateways at random while eight clients check every reply.

    make chaos            each of the options below, one after another
    python -m tests.hostile.chaos [--seconds 60] [options]

A random worker gets SIGKILL every 2 s, also while it starts, and a random gateway every 5 s. The exit code is 1 if
a request was lost, or answered wrongly, twice or with an error, or if the server was not ready within 15 s of the
last harm. A client sends a request again if it got Overloaded or Unavailable (over HTTP: 429 or 503), or if its
HTTP connection broke because its gateway was killed. Encoding has no side effects, so sending again is safe.

    --reload        send SIGHUP in the middle, which replaces the workers one at a time
    --signal STOP   stop processes for a second instead, and once the whole process group for --group_s seconds
    --files 256     give each process of the server this many descriptors; for a while, more clients connect
    --disk-full     fill the disk that the server uses for temporary files (needs Linux user namespaces)
    --clock-jumps   let the wall clock jump by hours (needs libfaketime, or apt-get to download it)
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import httpx
import psutil

from tests.hostile.checked_clients import CheckedClients, Pool, Tally
from tests.hostile.conditions import JumpingClock, enter_small_disk, filled_disk, receive_crowd
from tests.hostile.harm import Harm, kill, pause, pause_group
from tests.hostile.scripts import end_on_sigterm, finish, parser_of, print_head
from tests.hostile.target import Family, Target
from tests.support.running_server import RunningServer, is_alive

SERVER_FLAGS = ("-num_worker", 2, "-cpu")
MAX_READY_S = 15.0
_LIMIT_S = 120.0  # a request without a reply after this time is lost


@dataclass(frozen=True)
class Outcome:
    """What happened. ready_s: seconds from the last harm until the server was ready; infinity if it was not."""

    tallies: list[Tally]
    num_harmed: dict[str, int]
    ready_s: float
    extra_faults: list[str] = field(default_factory=list)

    @property
    def num_answered(self) -> int:
        """How many requests got their vectors."""
        return sum(tally.num_answered for tally in self.tallies)

    def faults(self) -> list[str]:
        """Return a line for everything that should not have happened, times excepted."""
        lines = [f"{tally.name}: {fault}" for tally in self.tallies for fault in tally.faults]
        return [*lines, *self.extra_faults, *["the server was not ready again"] * (self.ready_s == float("inf"))]


def harmed(
    server: RunningServer,
    seconds: float,
    limit_s: float,
    *,
    harm: Callable[[psutil.Process], None] = kill,
    in_the_middle: Callable[[], object] = lambda: None,
) -> Outcome:
    """Harm workers and gateways for some seconds while eight clients check every reply.

    limit_s: how long a request may take, and how long the server may take to be ready. in_the_middle: called after
    half of the time.
    """
    target = Target.of(server)
    family, pool = Family(target), Pool.from_server(target)
    with CheckedClients(target, pool, limit_s) as clients:
        with Harm(family, harm) as harming:
            _sleep_while_running(server, seconds / 2)
            in_the_middle()
            _sleep_while_running(server, seconds / 2)
        ready_s = _seconds_until_ready(server, harming.ended_at, limit_s)
    return Outcome(clients.tallies, harming.num_harmed, ready_s)


def stopped(server: RunningServer, seconds: float, limit_s: float, group_s: float) -> Outcome:
    """Stop workers and gateways for a second each, and in the middle all processes for group_s seconds.

    No process may be replaced, because none of them was silent for long by its own fault.
    """
    family = Family(Target.of(server))
    before = family.members()
    outcome = harmed(
        server, seconds, limit_s, harm=pause, in_the_middle=lambda: pause_group(server.process.pid, group_s)
    )
    replaced = [f"{name} was replaced" for name, process in before.items() if not is_alive(process)]
    return replace(outcome, extra_faults=replaced)


def crowded(server: RunningServer, seconds: float, limit_s: float, num_files: int) -> Outcome:
    """Harm workers and gateways. In the middle, connect idle clients to each port until no more are let in.

    num_files: the limit that was set with `limit_files`.
    """
    crowd = partial(receive_crowd, Target.of(server), num_files, seconds / 2)
    return harmed(server, seconds, limit_s, in_the_middle=crowd)


def limit_files(server: RunningServer, count: int) -> None:
    """Set the limit for descriptors while the server still loads its code. Its children inherit the limit."""
    psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE, (count, count))


def _sleep_while_running(server: RunningServer, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.process.poll() is None:
        time.sleep(0.1)


def _seconds_until_ready(server: RunningServer, since: float, limit_s: float) -> float:
    """Wait for /ready; return the seconds since `since` (monotonic).

    Returns infinity if limit_s passes or the server ends.
    """
    with httpx.Client(base_url=server.url, timeout=limit_s) as http:
        while time.monotonic() - since < limit_s and server.process.poll() is None:
            try:
                if http.get("/ready").status_code == 200:
                    return time.monotonic() - since
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    return float("inf")


def main() -> None:
    """Start a server with two workers, harm it, and print what happened."""
    args = _arguments()
    end_on_sigterm()
    if args.disk_full:
        enter_small_disk()
    with ExitStack() as stack:
        clock = stack.enter_context(JumpingClock()) if args.clock_jumps else None
        server = stack.enter_context(RunningServer(*SERVER_FLAGS, env=clock.env if clock else None))
        if args.files:
            limit_files(server, args.files)
        server.wait_ready()
        if args.disk_full:
            stack.enter_context(filled_disk())
        outcome = _harm(server, args)
        if (exit_code := server.process.poll()) is not None:
            print(f"the server ended with exit code {exit_code}:", *server.log.splitlines()[-20:], sep="\n")
    _print_table(outcome)
    late = [f"ready later than {MAX_READY_S:g} s after the last harm"] * (outcome.ready_s > MAX_READY_S)
    finish(outcome.faults() + late)


def _harm(server: RunningServer, args: argparse.Namespace) -> Outcome:
    if args.signal == "STOP":
        return stopped(server, args.seconds, _LIMIT_S, args.group_s)
    if args.files:
        return crowded(server, args.seconds, _LIMIT_S, args.files)
    reload = partial(server.signal, signal.SIGHUP)
    return harmed(server, args.seconds, _LIMIT_S, in_the_middle=reload if args.reload else lambda: None)


def _print_table(outcome: Outcome) -> None:
    print_head("client", "answered", "sent again", "faults")
    for tally in outcome.tallies:
        print(f"| {tally.name} | {tally.num_answered} | {tally.num_told} | {len(tally.faults)} |")
    print(f"\nharmed: {outcome.num_harmed}; ready {outcome.ready_s:.1f} s after the last harm")


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--reload", action="store_true")
    parser.add_argument("--signal", choices=("KILL", "STOP"), default="KILL")
    parser.add_argument("--group_s", type=float, default=35.0)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--disk-full", action="store_true")
    parser.add_argument("--clock-jumps", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
