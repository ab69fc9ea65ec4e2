"""Measures the broker alone: its CPU time for a request and for a text, and how busy it keeps many workers.

    python -m benchmarks.broker [--seconds 3] [--only one|bulk|workers]

The broker runs in a process of its own, with its real sockets. Simulated workers speak the protocol of the real
ones: they compute one batch after another, each in a fixed time, and use no CPU for it. The load comes over TCP,
from clients with two connections each. No text is sent twice.

CPU time is that of the whole process, user and system: the loop, and the thread in which libzmq reads and writes.
The simulated workers and the clients share the cores with the broker, so the rates are no limit of the broker.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zmq
from bert_serving.protocol.workers import Heartbeat, Ready, Result, Vectors, worker_message_to_frames
from bert_serving.server.broker.broker import Broker
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.ports import PrivateEndpoints
from bert_serving.server.broker.tei_metrics import TeiMetrics
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.garbage import GarbageCollection

from benchmarks.common import cpu_name
from tests.support.model_facts import model_facts
from tests.support.running_server import free_ports
from tests.support.sentences import sentences

_DIMENSION = 384
_TOKENS = 30  # of each text
_MANY = 4096
_NUMBER = "@NUMBER@"  # stands in a body where each request has a number of its own
_LOOP_MS = 250  # as the supervisor's loop
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Load:
    """Requests of one kind. rate: requests per second; None: each client sends a request when it has a reply.

    batch_ms: the time of a batch in a worker. batch_texts: the most texts in a batch.
    """

    name: str
    num_texts: int
    num_clients: int
    rate: float | None = None
    num_workers: int = 2
    batch_ms: float = 10.0
    batch_texts: int = 512


_ONE = [
    Load("1 text, 100 requests/s", 1, 64, 100),
    Load("1 text, 1,000 requests/s", 1, 64, 1000),
    Load("1 text, 3,000 requests/s", 1, 64, 3000),
    Load("1 text, 64 clients", 1, 64),
    Load("1 text, 1,000 requests/s, 64 workers", 1, 64, 1000, 64),
]
_BULK = [Load(f"{size:,} texts, 8 clients", size, 8, None, 8) for size in (16, 256, 4096)]
_WORKERS = [
    Load(f"{ms} ms a batch of 16 texts", 1024, 8, None, 64, batch_ms=ms, batch_texts=16) for ms in (5, 10, 20)
]


def run_broker(settings: dict[str, Any], endpoints: PrivateEndpoints, worker_names: Sequence[str]) -> None:
    """Run a broker in the loop that the supervisor runs. Does not return: the process must be killed."""
    metrics = BrokerMetrics(worker_names)
    broker = Broker(
        Settings(**settings),
        endpoints=endpoints,
        worker_names=worker_names,
        max_seq_len=256,
        metrics=metrics,
        observers=[TeiMetrics(metrics)],
    )
    garbage = GarbageCollection(time.monotonic())
    while True:
        broker.step(_LOOP_MS)
        garbage.run_if_due(time.monotonic(), broker.num_held)


class SimulatedWorkers:
    """Workers in one thread. batch_s: the time of a batch. busy_s: the computing time of all of them together."""

    def __init__(self, endpoint: str, names: Sequence[str], batch_s: float) -> None:
        self.busy_s = 0.0
        self._batch_s = batch_s
        self._rows = np.random.default_rng(0).standard_normal((_MANY, _DIMENSION), dtype=np.float32)
        self._poller = zmq.Poller()
        self._free_at: dict[zmq.Socket[bytes], float] = {}  # when a worker has computed all of its batches
        self._due: list[tuple[float, int, zmq.Socket[bytes], Result]] = []  # heap of results by time
        self._heartbeat_at = time.monotonic() + 1
        context = zmq.Context()
        facts = model_facts(dimension=_DIMENSION, hidden_size=_DIMENSION, tokens_per_s=1e6)
        for number, name in enumerate(names):
            socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, f"{name}#{number}".encode())
            socket.connect(endpoint)
            socket.send_multipart(worker_message_to_frames(Ready(facts)))
            self._poller.register(socket, zmq.POLLIN)
            self._free_at[socket] = 0.0

    def turn(self) -> None:
        """Wait until a batch arrives or is done; take the batches, and send the results that are due."""
        next_at = min([self._heartbeat_at, *(entry[0] for entry in self._due[:1])])
        for socket, _ in self._poller.poll(int(max(0.0, next_at - time.monotonic()) * 1000)):
            self._take(socket, time.monotonic())
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, socket, result = heapq.heappop(self._due)
            socket.send_multipart(worker_message_to_frames(result))
            self.busy_s += self._batch_s
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + 1
            for socket in self._free_at:
                socket.send_multipart(worker_message_to_frames(Heartbeat(0.0)))

    def _take(self, socket: zmq.Socket[bytes], now: float) -> None:
        batch = orjson.loads(socket.recv_multipart()[1])
        sizes = [len(part["texts"]) for part in batch["parts"]]
        vectors = [Vectors(self._rows[:size], [_TOKENS] * size) for size in sizes]
        done_at = self._free_at[socket] = max(now, self._free_at[socket]) + self._batch_s
        result = Result(batch["batch_id"], vectors, 1.0, self._batch_s * 1000)
        heapq.heappush(self._due, (done_at, result.batch_id, socket, result))


def run_workers(endpoint: str, names: Sequence[str], batch_s: float, busy_s: Any) -> None:
    """Run the simulated workers; keep the shared number busy_s up to date. Does not return."""
    workers = SimulatedWorkers(endpoint, names, batch_s)
    while True:
        workers.turn()
        busy_s.value = workers.busy_s


class Clients:
    """Clients in one thread. Each has its own connections, as every `BertClient` has."""

    def __init__(self, load: Load, ports: dict[str, int]) -> None:
        self.num_replies = 0
        self._load = load
        self._num_sent = 0
        self._body = orjson.dumps([f"{_NUMBER} {text}" for text in sentences(load.num_texts)])
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._pushes: list[zmq.Socket[bytes]] = []
        self._client_of: dict[zmq.Socket[bytes], int] = {}
        for i in range(load.num_clients):
            push, sub = self._context.socket(zmq.PUSH), self._context.socket(zmq.SUB)
            sub.subscribe(self._identity(i))
            push.connect(f"tcp://127.0.0.1:{ports['port']}")
            sub.connect(f"tcp://127.0.0.1:{ports['port_out']}")
            self._poller.register(sub, zmq.POLLIN)
            self._pushes.append(push)
            self._client_of[sub] = i

    def _identity(self, client: int) -> bytes:
        return b"client-%030d" % client  # as long as a UUID

    def _send(self, client: int) -> None:
        self._num_sent += 1
        body = self._body.replace(_NUMBER.encode(), b"%d" % self._num_sent)
        number = b"%d" % (self._num_sent + 1)
        self._pushes[client].send_multipart([self._identity(client), body, number, b"%d" % self._load.num_texts])

    def run(self, seconds: float) -> None:
        """Send requests for so long, and wait for all their replies."""
        began = time.monotonic()
        first = self._num_sent
        if self._load.rate is None:
            for client in range(self._load.num_clients):
                self._send(client)
        while (elapsed := time.monotonic() - began) < seconds:
            if self._load.rate is not None:
                while self._num_sent - first < elapsed * self._load.rate:
                    self._send(self._num_sent % self._load.num_clients)
            for client in self._receive(1):
                if self._load.rate is None:
                    self._send(client)
        while self.num_replies < self._num_sent:
            if not self._receive(10_000):
                raise TimeoutError("a reply is missing")

    def _receive(self, timeout_ms: int) -> list[int]:
        """Wait for replies; return the client of each reply."""
        clients = []
        for sub, _ in self._poller.poll(timeout_ms):
            while sub.get(zmq.EVENTS) & zmq.POLLIN:
                info = orjson.loads(sub.recv_multipart(copy=False)[1].buffer)
                assert info["shape"] == [self._load.num_texts, _DIMENSION], info
                clients.append(self._client_of[sub])
        self.num_replies += len(clients)
        return clients

    def close(self) -> None:
        """Close all connections."""
        self._context.destroy(linger=0)


@dataclass(frozen=True)
class Figures:
    """What was measured. loop_us, io_us: CPU time for a request, in the loop and in libzmq's thread."""

    requests_per_s: float
    loop_us: float
    io_us: float
    core: float
    busy: float


def measured(load: Load, seconds: float) -> Figures:
    """Run a load for so many seconds, after one second of it that does not count."""
    port, port_out = free_ports(2)
    names = [f"worker-{i}" for i in range(load.num_workers)]
    settings = {"port": port, "port_out": port_out, "http_port": None, "max_batch_size": load.batch_texts}
    busy_s = _spawn.Value("d", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        endpoints = PrivateEndpoints.in_folder(folder)
        arguments = (endpoints.workers, names, load.batch_ms / 1000, busy_s)
        with running(run_broker, settings, endpoints, names) as pid, running(run_workers, *arguments):
            clients = Clients(load, {"port": port, "port_out": port_out})
            try:
                clients.run(1.0)
                before, began, count, busy = cpu_seconds(pid), time.monotonic(), clients.num_replies, busy_s.value
                clients.run(seconds)
                after, wall, count = cpu_seconds(pid), time.monotonic() - began, clients.num_replies - count
                busy = (busy_s.value - busy) / wall / load.num_workers
            finally:
                clients.close()
    loop, other = (late - early for early, late in zip(before, after, strict=True))
    return Figures(count / wall, loop / count * 1e6, other / count * 1e6, (loop + other) / wall, busy)


@contextmanager
def running(target: Any, *args: object) -> Iterator[int]:
    """Run a function in a process of its own inside the context; the value is the id of the process."""
    process = _spawn.Process(target=target, args=args, daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Return the CPU time of a process: of its main thread, and of its other threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    used = {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}
    main = used.pop(str(pid))
    return main / 1e9, sum(used.values()) / 1e9


def show(header: str, loads: Sequence[Load], seconds: float, row: Callable[[Load, Figures], str]) -> None:
    """Print a table with a row for each load. header: the names of its columns."""
    print(f"\n| {header} |\n" + "|---" * (header.count("|") + 1) + "|")
    for load in loads:
        print(f"| {load.name} | {row(load, measured(load, seconds))} |", flush=True)


def row_of_one(load: Load, m: Figures) -> str:
    """Return the columns for requests of one text."""
    return f"{m.requests_per_s:,.0f} | {m.loop_us + m.io_us:.0f} | {m.loop_us:.0f} | {m.io_us:.0f}"


def row_of_bulk(load: Load, m: Figures) -> str:
    """Return the columns for large requests."""
    us = m.loop_us + m.io_us
    return f"{m.requests_per_s * load.num_texts:,.0f} | {us:,.0f} | {us / load.num_texts:.2f}"


def row_of_workers(load: Load, m: Figures) -> str:
    """Return the columns for many workers."""
    return f"{m.requests_per_s * load.num_texts:,.0f} | {m.busy:.1%} | {m.core:.0%}"


def main() -> None:
    """Print a table for each kind of load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    parser.add_argument("--only", choices=["one", "bulk", "workers"], help="print this table only")
    args = parser.parse_args()
    print(f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if args.only in (None, "one"):
        columns = "load | requests/s | CPU of a request, us | of these in the loop | in libzmq's thread"
        show(columns, _ONE, args.seconds, row_of_one)
    if args.only in (None, "bulk"):
        show("load | texts/s | CPU of a request, us | of a text", _BULK, args.seconds, row_of_bulk)
    if args.only in (None, "workers"):
        show("64 workers | texts/s | busy | CPU of the broker", _WORKERS, args.seconds, row_of_workers)


if __name__ == "__main__":
    main()
