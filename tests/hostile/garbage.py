"""Sends garbage to all ports of a server and checks that the server stays small and serves a client beside it.

    python -m tests.hostile.garbage [--messages 1000000] [--connections 20000]

Random messages go to the port for requests. Random connections with random bytes go to all three ports. The exit
code is 1 if the server process grew by 30 MB, or if the client beside it got an error or a p99 above one second.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.common import cpu_name
from tests.hostile.garbage_messages import garbage_messages
from tests.hostile.raw import RawClient
from tests.hostile.scripts import CALLS_HEAD, delays, end_on_sigterm, finish, parser_of, print_head
from tests.hostile.target import Family, Target
from tests.hostile.victim import Calls, Victim
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

MAX_GROWTH_MB = 30.0
MAX_P99_MS = 1000.0
_NUM_AT_ONCE = 50
_SETTLE_S = 25.0  # after 10 s replies to unknown identities are dropped; 10 s later free memory is returned
_REPLY_S = 0.05  # how long a random connection waits for a reply
_HANDSHAKE = bytes.fromhex("ff00000000000000017f0300") + b"NULL".ljust(20, b"\0") + bytes(32)  # of ZMTP 3.0
_BEGINNINGS = (
    b"",
    _HANDSHAKE,
    _HANDSHAKE[:12],
    b"GET /live HTTP/1.1\r\n",
    b"POST /encode HTTP/1.1\r\nHost: a\r\n",
)


@dataclass(frozen=True)
class Outcome:
    """How much the server process has grown when it had time to return memory, and right after the garbage.

    calls: the calls of the client beside the garbage.
    """

    growth_mb: float
    peak_mb: float
    calls: list[Calls]

    def faults(self) -> list[str]:
        """Return a line for everything that should not have happened, times excepted."""
        errors = [f"{calls.name}: {error}" for calls in self.calls for error in calls.errors[:3]]
        grown = f"the server grew by {self.growth_mb:.0f} MiB"
        return errors + [grown] * (self.growth_mb >= MAX_GROWTH_MB)


def pelted(
    target: Target, num_messages: int, num_connections: int, timeout_s: float, settle_s: float = 0.0
) -> Outcome:
    """Send messages and connections beside a victim; return the outcome.

    The server's memory is measured before the garbage, and again settle_s seconds after all of it was read. A
    little garbage comes before the first measurement, so that code which the server loads only for errors does not
    count.
    """
    family = Family(target)
    _run(send_messages, target, 1000)
    before = family.server_mb()
    peak = before
    with Victim(target, timeout_s) as victim:
        for act, count in ((send_messages, num_messages), (open_connections, num_connections)):
            _run(act, target, count)
            peak = max(peak, family.server_mb())
    time.sleep(settle_s)
    return Outcome(family.server_mb() - before, peak - before, victim.calls)


def send_messages(target: Target, count: int) -> None:
    """Send random messages; return when the server has read them all."""
    with RawClient(target) as client:
        for message in itertools.islice(garbage_messages(seed=count), count):
            while not client.send(message):
                pass
        while not client.ask(b"SHOW_STATUS", 0):
            pass
        assert any(client.replies(HANG_S)), "no reply to the message after the garbage"


def open_connections(target: Target, count: int) -> None:
    """Open random connections to all three ports."""
    asyncio.run(_open_connections(target, count))


async def _open_connections(target: Target, count: int) -> None:
    rng = random.Random(count)
    left = iter(range(count))

    async def one_after_another() -> None:
        for _ in left:
            with suppress(OSError):
                await _open_connection(rng, rng.choice((target.port, target.port_out, target.http_port)))

    await asyncio.gather(*(one_after_another() for _ in range(_NUM_AT_ONCE)))


async def _open_connection(rng: random.Random, port: int) -> None:
    """Connect, send a beginning and random bytes, and close: at once, after a reply, or with a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(rng.choice(_BEGINNINGS) + rng.randbytes(rng.choice((0, 1, 10, 1000, 50_000))))
    how = rng.randrange(3)
    if how == 0:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(100), _REPLY_S)
    elif how == 1:
        reset_on_close = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
    writer.close()
    await writer.wait_closed()


def _run(act: Callable[[Target, int], None], target: Target, count: int) -> None:
    """Run an action in another process, so that it does not slow down the victim in this one."""
    process = multiprocessing.get_context("spawn").Process(target=act, args=(target, count), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0, f"{act.__name__} failed"


def main() -> None:
    """Start a server, send the garbage, and print what happened."""
    parser = parser_of(__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=20_000)
    args = parser.parse_args()
    end_on_sigterm()

    with RunningServer() as server:
        target, began = Target.of(server.wait_ready()), time.monotonic()
        outcome = pelted(target, args.messages, args.connections, timeout_s=30, settle_s=_SETTLE_S)
        seconds = time.monotonic() - began - _SETTLE_S
    print(f"{cpu_name()}, {os.cpu_count()} cores")
    print(f"{args.messages} messages and {args.connections} connections in {seconds:.0f} s")
    print(f"the server process grew by {outcome.growth_mb:.1f} MiB; right after the garbage, by")
    print(f"{outcome.peak_mb:.1f} MiB\n")
    print_head(CALLS_HEAD)
    for calls in outcome.calls:
        print(f"| {calls.row()} |")
    finish(outcome.faults() + delays(outcome.calls, MAX_P99_MS))


if __name__ == "__main__":
    main()
