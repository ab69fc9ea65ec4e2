"""Measure what pages that are open in browsers cost the server.

    python -m benchmarks.open_pages [--pages 20] [--rounds 8]

Starts a server with the demo model. Alternately, no page and many pages follow GET /page/live, while one client
encodes in bulk. The pages are connections that read the stream; the browsers themselves would take cores of this
machine. Prints the rate of each round, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading

import httpx
from bert_serving.client import BertClient
from bert_serving.server import BertServer
from bert_serving.server.helper import get_args_parser

from tests.support.running_server import free_ports
from tests.support.sentences import sentences

from .common import cpu_name, seconds

_NUM_TEXTS = 4096


class Pages:
    """Connections that follow the server while the context is entered."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._count = count
        self._thread = threading.Thread(target=lambda: asyncio.run(self._follow_all()))
        self._stop = threading.Event()
        self.num_events = 0

    def __enter__(self) -> Pages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _follow_all(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=None, limits=limits) as client:
            tasks = [asyncio.create_task(self._follow(client)) for _ in range(self._count)]
            await asyncio.to_thread(self._stop.wait)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/page/live") as response:
            async for line in response.aiter_lines():
                self.num_events += line.startswith("data: ")


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
        with BertClient(port=port, port_out=port_out) as client:
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
        with Pages(url, num_pages) as pages:
            with_pages = _NUM_TEXTS / seconds(lambda: client.encode(texts))
        ratios.append(with_pages / without)
        sys.stdout.write(f"texts/s without {without:.0f}, with {with_pages:.0f}; events {pages.num_events}\n")
    return ratios


if __name__ == "__main__":
    main()
