"""Measures how long a server is held up when many BertClients leave at the same time.

    python -m benchmarks.leaving_clients [--clients 100 400 1600]

libzmq looks through all subscriptions for each connection that ends. So the time grows with the square of the
number of clients. It is the time of a bulk job right after they have left, less the time of the same job before.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics

from benchmarks.arena import texts
from benchmarks.arena.load import opened
from benchmarks.arena.served import OwnServer
from benchmarks.common import cpu_name

_TEXTS = 512


async def come_and_go(server: OwnServer, count: int) -> None:
    """Open this number of clients, let each encode a text, and close them."""
    async with opened(server.open_caller, count) as callers:
        await asyncio.gather(*(caller.encode([f"text {i}"]) for i, caller in enumerate(callers)))


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", type=int, default=[100, 400, 1600])
    args = parser.parse_args()
    jobs = iter(range(1000))  # each has other texts, which are in no cache
    with OwnServer(("-compile", "wait"), None) as server:

        def bulk() -> float:
            return server.bulk(texts.natural(_TEXTS, seed=100 + next(jobs)))

        usual = statistics.median(bulk() for _ in range(5))
        print(f"{cpu_name()}; a bulk job of {_TEXTS} texts: {usual:.2f} s")
        for count in args.clients:
            asyncio.run(come_and_go(server, count))
            print(f"{count} clients leave: the job takes {bulk() - usual:.2f} s longer", flush=True)


if __name__ == "__main__":
    main()
