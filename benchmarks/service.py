"""Compares a running server with sentence-transformers in this process, on the same texts.

    make bench            or: python -m benchmarks.service [--rounds 3] [bert-serving-start flags ...]

It starts a server with the demo model. In each round it measures every line of its table once. It prints the
medians of the rounds as a Markdown table. The server and sentence-transformers both use this machine's default
number of threads.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bert_serving.client import BertClient
from bert_serving.server.model.demo import find_demo_model
from sentence_transformers import SentenceTransformer

from benchmarks.common import cpu_name, seconds
from tests.support.running_server import RunningServer
from tests.support.sentences import sentences

NUM_TEXTS = 1024
NUM_SINGLES = 64
NUM_CLIENTS = 16


def many_clients(server: RunningServer, texts: list[str]) -> None:
    """Encode the texts with several clients at once. Each client sends its share, one text per request."""

    def run(share: list[str]) -> None:
        with BertClient(**server.ports, ignore_all_checks=True) as client:
            for text in share:
                client.encode([text])

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(run, [texts[i::NUM_CLIENTS] for i in range(NUM_CLIENTS)]))


def main() -> None:
    """Start a server, measure each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args, server_flags = parser.parse_known_args()

    texts = sentences(NUM_TEXTS)
    singles = texts[:NUM_SINGLES]
    reference = SentenceTransformer(str(find_demo_model()))
    with (
        RunningServer(*server_flags) as server,
        BertClient(**server.wait_ready().ports, check_length=False) as client,
    ):
        device = client.server_status["workers"][0]
        ways: dict[str, tuple[int, Callable[[], object]]] = {
            "sentence-transformers, one call": (NUM_TEXTS, lambda: reference.encode(texts)),
            "sentence-transformers, one text per call": (
                NUM_SINGLES,
                lambda: [reference.encode([t]) for t in singles],
            ),
            "service, one request": (NUM_TEXTS, lambda: client.encode(texts)),
            "service, one text per request, 1 client": (
                NUM_SINGLES,
                lambda: [client.encode([t]) for t in singles],
            ),
            f"service, one text per request, {NUM_CLIENTS} clients": (
                NUM_TEXTS,
                lambda: many_clients(server, texts),
            ),
        }
        for _, run in ways.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, (_, run) in ways.items():
                times[name].append(seconds(run))

    print(f"{cpu_name()}, {platform.machine()}; worker: {device['device']}, {device['dtype']}")
    print(f"{NUM_TEXTS} sentences of mixed length, median of {args.rounds} rounds in alternation\n")
    print("| way | sentences/s | ms per call |\n|---|---|---|")
    for name, (count, _) in ways.items():
        median = statistics.median(times[name])
        calls = (
            {NUM_TEXTS: 1, NUM_SINGLES: NUM_SINGLES}[count] if "clients" not in name else NUM_TEXTS / NUM_CLIENTS
        )
        print(f"| {name} | {count / median:.0f} | {median / calls * 1000:.1f} |")


if __name__ == "__main__":
    main()
