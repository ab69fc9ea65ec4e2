"""Measures the HTTP gateway alone, with a fake worker that returns fixed vectors at once.

    python -m benchmarks.gateway [--seconds 5] [--http_workers 1]

The load generator, the gateway, the broker and the fake worker share the machine. Therefore each rate is also
given "per core": the number of requests or MB, divided by the CPU time of the gateway processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
import psutil
import zmq
from bert_serving.protocol.workers import (
    Batch,
    ModelFacts,
    Ready,
    Result,
    Vectors,
    worker_message_from_frames,
    worker_message_to_frames,
)
from bert_serving.server.broker.broker import Broker
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.ports import PrivateEndpoints
from bert_serving.server.broker.tei_metrics import TeiMetrics
from bert_serving.server.keys import KeySource
from bert_serving.server.logs import LogOptions
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor import child
from bert_serving.server.supervisor.launch import body_limits, connection_limits
from bert_serving.server.supervisor.listeners import listen

from benchmarks.common import cpu_name
from tests.support.running_server import free_ports
from tests.support.sentences import sentences

DIMENSION = 384
NUM_CONNECTIONS = 16
MANY = 4096
FACTS = ModelFacts(
    pid=1,
    fingerprint="none",
    device="none",
    dtype="float32",
    dimension=DIMENSION,
    hidden_size=DIMENSION,
    kind="embedding",
    poolings=("REDUCE_MEAN",),
    splits_specials=False,
    prompts={},
    labels=(),
    max_seq_len=256,
    forward="none",
    parity=1.0,
    tokens_per_s=1e9,
    max_batch_tokens=1 << 30,
)

_spawn = multiprocessing.get_context("spawn")


def run_broker(settings: dict[str, Any], endpoints: PrivateEndpoints) -> None:
    """Run a broker for one worker. Does not return: the process must be killed."""
    names = ["worker-0"]
    metrics = BrokerMetrics(names)
    broker = Broker(
        Settings(**settings),
        endpoints=endpoints,
        worker_names=names,
        max_seq_len=256,
        metrics=metrics,
        observers=[TeiMetrics(metrics)],
    )
    while True:
        broker.step(500)


def run_fake_worker(endpoint: str) -> None:
    """Run the fake worker: it returns a result for each batch at once, always with the same vectors."""
    socket_: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket_.setsockopt(zmq.IDENTITY, b"worker-0#1")
    socket_.connect(endpoint)
    socket_.send_multipart(worker_message_to_frames(Ready(FACTS)))
    rows = np.random.default_rng(0).standard_normal((MANY, DIMENSION), dtype=np.float32)
    while True:
        batch = worker_message_from_frames(socket_.recv_multipart())
        if isinstance(batch, Batch):
            done = [Vectors(rows[: len(part.texts)], [32] * len(part.texts)) for part in batch.parts]
            socket_.send_multipart(worker_message_to_frames(Result(batch.batch_id, done)))


@dataclass(frozen=True)
class Load:
    """Requests of one kind. size: number of texts in each request."""

    name: str
    path: str
    body: dict[str, Any]
    size: int
    accept: str = "application/json"

    @property
    def message(self) -> bytes:
        """The bytes of the HTTP request."""
        body = json.dumps(self.body).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Accept: {self.accept}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def send(
    port: int, load: Load, seconds: float, *, num_connections: int = NUM_CONNECTIONS
) -> tuple[int, int]:
    """Send requests over several connections; return the number of responses and of bytes in their bodies.

    num_connections: for requests of one text; others use two connections.
    """
    message, until = load.message, time.perf_counter() + seconds
    done = [0, 0]

    async def one_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        while time.perf_counter() < until:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            num_bytes = await read_body(reader, head)
            done[0] += 1
            done[1] += num_bytes
        writer.close()

    await asyncio.gather(*(one_connection() for _ in range(num_connections if load.size == 1 else 2)))
    return done[0], done[1]


async def read_body(reader: asyncio.StreamReader, head: bytes) -> int:
    """Read the body of a response; return its number of bytes. A large body has its length before each piece."""
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    if length:
        return len(await reader.readexactly(int(length)))
    total = 0
    while size := int(await reader.readline(), 16):
        total += len((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return total


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the CPU time that the processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    """Start the broker, the fake worker and the gateways, and print a row for each load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    parser.add_argument("--http_workers", type=int, default=1)
    args = parser.parse_args()

    text, texts = "The quick brown fox jumps over the lazy dog.", sentences(MANY)
    loads = [
        Load("/embed, one text, JSON", "/embed", {"inputs": text}, 1),
        Load("/v1/embeddings, one text, JSON", "/v1/embeddings", {"input": text, "model": "m"}, 1),
        Load(
            "/v1/embeddings, one text, base64",
            "/v1/embeddings",
            {"input": text, "model": "m", "encoding_format": "base64"},
            1,
        ),
        Load("/encode, one text, JSON", "/encode", {"id": 1, "texts": [text]}, 1),
        Load(f"/embed, {MANY} texts, JSON", "/embed", {"inputs": texts}, MANY),
        Load(f"/embed, {MANY} texts, raw", "/embed", {"inputs": texts}, MANY, "application/octet-stream"),
    ]
    port, port_out, http_port = free_ports(3)
    with tempfile.TemporaryDirectory() as folder, listen("127.0.0.1", http_port) as listener:
        endpoints = PrivateEndpoints.in_folder(folder)
        settings = {"port": port, "port_out": port_out, "http_port": http_port}
        gateway = {
            "http_sockets": [listener],
            "requests_endpoint": endpoints.requests,
            "replies_endpoint": endpoints.replies,
            "connection_limits": connection_limits(Settings()),
            "body_limits": body_limits(Settings()),
            "certificate": None,
            "trusted_proxies": "",
            "root_path": "",
            "cors": "*",
            "model_name": "fake",
            "tokenizer_dir": "",
            "api_keys": KeySource(),
            "protect_metrics": False,
            "access_log": False,
            "tracing": None,
            "drain_timeout_s": 1.0,
        }
        children = [start(run_broker, settings, endpoints), start(run_fake_worker, endpoints.workers)]
        gateways = []
        for i in range(args.http_workers):
            heartbeat, child_end = _spawn.Pipe(duplex=False)
            kwargs = {**gateway, "name": f"gateway-{i}", "heartbeat": child_end}
            env = {"PROMETHEUS_MULTIPROC_DIR": folder}
            target = "bert_serving.server.gateway.app:main"
            gateways.append(start(child.run, target, "gateway", LogOptions(), folder, kwargs, env))
            os.read(heartbeat.fileno(), 1)  # a gateway writes when it is ready
        try:
            print(f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
            print("| load | requests/s | MB/s sent | requests/s per core | MB/s per core |")
            print("|---|---|---|---|---|")
            for load in loads:
                print(row(load, http_port, [psutil.Process(p.pid) for p in gateways], args.seconds), flush=True)
        finally:
            for each in [*gateways, *children]:
                each.kill()
                each.join()


def start(target: Callable[..., None], *args: Any) -> SpawnProcess:
    """Start a child process that runs the target."""
    process = _spawn.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def row(load: Load, port: int, gateways: list[psutil.Process], seconds: float) -> str:
    """Measure one load, and return its row of the table."""
    asyncio.run(send(port, load, min(1.0, seconds)))
    began, cpu = time.perf_counter(), cpu_seconds(gateways)
    count, num_bytes = asyncio.run(send(port, load, seconds))
    wall, cpu = time.perf_counter() - began, cpu_seconds(gateways) - cpu
    rates = [count / wall, num_bytes / wall / 1e6, count / cpu, num_bytes / cpu / 1e6]
    return f"| {load.name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |"


if __name__ == "__main__":
    main()
