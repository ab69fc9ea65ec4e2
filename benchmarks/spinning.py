"""Compares how long OpenMP's idle threads may spin, on a machine at rest and beside a busy program.

    python -m benchmarks.spinning [--rounds 3] [--counts default 0 3000 10000 30000]

Each measurement is a process of its own, because libgomp reads GOMP_SPINCOUNT when it is loaded. The values take
turns in each round; each figure is the median of the rounds. A worker sets 10,000, unless GOMP_SPINCOUNT or
OMP_WAIT_POLICY is set where the server starts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.common import cpu_name, seconds
from tests.support.sentences import sentences

_NUM_BULK = 512
_spawn = multiprocessing.get_context("spawn")


def measure(count: str, results: Connection) -> None:
    """Send sentences/s in bulk, and the median and the longest time of a sentence alone in ms."""
    if count != "default":
        os.environ["GOMP_SPINCOUNT"] = count
    from bert_serving.server import Encoder  # imports torch, which loads libgomp
    from bert_serving.server.model.demo import find_demo_model

    encoder = Encoder(find_demo_model(), dtype="bfloat16", device="cpu")
    texts = sentences(_NUM_BULK)
    short = [text for text in texts if len(text) in range(40, 121)][:64]
    encoder.encode(texts[:128])
    bulk_s = seconds(lambda: encoder.encode(texts))
    alone = [1000 * seconds(lambda text=text: encoder.encode([text])) for text in short]  # type: ignore[misc]
    results.send((len(texts) / bulk_s, statistics.median(alone), max(alone)))


def measured(count: str) -> tuple[float, float, float]:
    """Return what `measure` sends from a new process."""
    receiver, sender = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=measure, args=(count, sender))
    process.start()
    sender.close()
    figures: tuple[float, float, float] = receiver.recv()
    process.join()
    return figures


def spin() -> None:
    """Keep one core busy for ever."""
    while True:
        pass


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy inside the context."""
    process = _spawn.Process(target=spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Print one table for a machine at rest and one for a busy core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", nargs="+", default=["default", "0", "3000", "10000", "30000"])
    args = parser.parse_args()
    rows = defaultdict(list)
    for _ in range(args.rounds):
        for count in args.counts:
            rows["at rest", count].append(measured(count))
        with busy_core():
            for count in args.counts:
                rows["one core busy", count].append(measured(count))
    print(f"{cpu_name()}, {os.cpu_count()} cores; median of {args.rounds} rounds\n")
    print("| machine | GOMP_SPINCOUNT | sentences/s in bulk | one sentence, ms | longest, ms |")
    print("|---|---|---|---|---|")
    for (machine, count), figures in sorted(rows.items(), key=lambda row: row[0][0]):
        bulk, alone, longest = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"| {machine} | {count} | {bulk:.0f} | {alone:.1f} | {longest:.1f} |")


if __name__ == "__main__":
    main()
