"""Measure what pages that are open in browsers cost the server.

    python -m benchmarks.open_pages [--pages 20] [--rounds 8]

Starts a server with the demo model. Alternately, no page and many pages follow GET /page/live, while one client
encodes in bulk. The pages are curl processes that read the stream; browsers would take cores of this machine.
Prints the rate of each round, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bert_serving.client import BertClient
from bert_serving.server import BertServer
from bert_serving.server.helper import get_args_parser

from tests.support.running_server import free_ports
from tests.support.sentences import sentences

from .common import cpu_name, seconds

_NUM_TEXTS = 8192
_OPENING_S = 3.0


@contextmanager
def open_pages(url: str, count: int) -> Iterator[None]:
    """Follow the server with this number of curl processes, which read each event and drop it."""
    pages = [subprocess.Popen(["curl", "-sN", "-o", "/dev/null", f"{url}/page/live"]) for _ in range(count)]
    time.sleep(_OPENING_S)  # each page gets the history first, once
    try:
        yield
    finally:
        for page in pages:
            page.kill()
            page.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    port, port_out, http_port = free_ports(3)
    flags = ["-port", str(port), "-port_out", str(port_out), "-http_port", str(http_port)]
    server = BertServer(get_args_parser().parse_args(flags))
    server.start()
    try:
        with BertClient(port=port, port_out=port_out, check_length=False) as client:
            ratios = [*_ratios(client, f"http://127.0.0.1:{http_port}", args.pages, args.rounds)]
    finally:
        server.close()
    sys.stdout.write(f"{cpu_name()}: with {args.pages} pages, {statistics.median(ratios):.3f} of the rate\n")


def _ratios(client: BertClient, url: str, num_pages: int, rounds: int) -> list[float]:
    texts = sentences(_NUM_TEXTS)
    client.encode(texts)
    ratios = []
    for _ in range(rounds):
        without = _NUM_TEXTS / seconds(lambda: client.encode(texts))
        with open_pages(url, num_pages):
            with_pages = _NUM_TEXTS / seconds(lambda: client.encode(texts))
        ratios.append(with_pages / without)
        sys.stdout.write(f"texts/s without {without:.0f}, with {with_pages:.0f}\n")
    return ratios


if __name__ == "__main__":
    main()
