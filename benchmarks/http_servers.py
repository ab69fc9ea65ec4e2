"""Compares HTTP servers for Python: all run the gateway's application, and a worker returns fixed vectors.

    pip install granian hypercorn
    python -m benchmarks.http_servers [--seconds 5] [--rounds 5] [--servers gateway granian]

gateway is uvicorn with httptools and this project's limits: the way the gateway runs. The others run the same
application without these limits, each with its defaults, one process, asyncio's event loop and no access log.

All servers run from the beginning to the end. In each round, each server gets each load once. A rate is the median
of its rounds. The load generator, the broker and the fake worker share the machine with the server. Therefore each
rate is also given for one CPU second of the server's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median

import psutil
import uvicorn
from bert_serving.client import Address, AsyncBertClient
from bert_serving.server.broker.ports import PrivateEndpoints
from bert_serving.server.gateway.app import Server, create_app
from bert_serving.server.gateway.http_protocol import ConnectionPool
from bert_serving.server.gateway.known_models import KnownModels
from bert_serving.server.gateway.limits import BodyLimits
from bert_serving.server.gateway.memory import GatewayMemory
from bert_serving.server.gateway.service import Service, server_status
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.launch import body_limits
from bert_serving.server.supervisor.listeners import listen
from fastapi import FastAPI

from benchmarks.common import cpu_name
from benchmarks.gateway import MANY, Load, cpu_seconds, run_broker, run_fake_worker, send, start
from tests.support.gateway import make_connection_limits
from tests.support.running_server import free_ports
from tests.support.sentences import sentences
from tests.support.waiting import HANG_S, wait_until

NUM_CONNECTIONS = 64

# The server processes find the broker by these variables.
_REQUESTS, _REPLIES = "BENCHMARK_REQUESTS", "BENCHMARK_REPLIES"
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_APP = "benchmarks.http_servers:make_app"
_UVICORN = ["uvicorn", _APP, "--factory", "--no-access-log", "--log-level", "warning", "--loop", "asyncio"]
_GRANIAN = ["granian", _APP, "--factory", "--interface", "asgi", "--no-ws", "--log-level", "warning"]

#: The servers: the arguments of `python -m`, in which PORT stands for the port.
SERVERS = {
    "gateway": ["benchmarks.http_servers", "--serve", "PORT"],
    "uvicorn-httptools": [*_UVICORN, "--http", "httptools", "--port", "PORT"],
    "uvicorn-h11": [*_UVICORN, "--http", "h11", "--port", "PORT"],
    "granian": [*_GRANIAN, "--loop", "asyncio", "--workers", "1", "--port", "PORT"],
    "hypercorn": ["hypercorn", f"{_APP}()", "--bind", "127.0.0.1:PORT", "--log-level", "warning"],
}

LOADS = (
    Load("one text", "/embed", {"inputs": "The quick brown fox jumps over the lazy dog."}, 1),
    Load(f"{MANY:,} texts, raw", "/embed", {"inputs": sentences(MANY)}, MANY, "application/octet-stream"),
)


def make_app() -> FastAPI:
    """Return the gateway's application. It sends texts to the broker that the environment names."""
    address = Address(os.environ[_REQUESTS], os.environ[_REPLIES])
    client = AsyncBertClient(address=address, check_length=False, retry=False)
    models = KnownModels(partial(server_status, client), Path())
    limits = BodyLimits(**body_limits(Settings()))
    return create_app(Service(client, "fake", models, limits, GatewayMemory(limits.held_bytes)), cors="*")


def serve(port: int) -> None:
    """Serve the application as the gateway does. Returns after SIGTERM."""
    pool = ConnectionPool(make_connection_limits().within_open_files())
    config = uvicorn.Config(
        make_app(),
        http=pool.new_connection,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        log_level="warning",
        access_log=False,
    )

    async def run() -> None:
        checks = asyncio.create_task(pool.check_forever())
        await Server(config).serve(sockets=[listen("127.0.0.1", port)])
        checks.cancel()

    asyncio.run(run())


@contextmanager
def running(name: str, port: int) -> Iterator[psutil.Process]:
    """Run a server; return its process when it answers."""
    args = [word.replace("PORT", str(port)) for word in SERVERS[name]]
    with subprocess.Popen([sys.executable, "-m", *args]) as process:
        server = psutil.Process(process.pid)
        try:
            wait_until(lambda: process.poll() is not None or _answers(port), f"{name} does not answer")
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with exit code {process.returncode}")
            yield server
        finally:
            with suppress(psutil.NoSuchProcess):
                for each in (*server.children(recursive=True), server):
                    each.kill()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=HANG_S).close()
    except OSError:
        return False
    return True


@contextmanager
def backend() -> Iterator[None]:
    """Run a broker and a fake worker; the variables for the servers name the broker."""
    port, port_out = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        endpoints = PrivateEndpoints.in_folder(folder)
        os.environ.update({_REQUESTS: endpoints.requests, _REPLIES: endpoints.replies, _METRICS: folder})
        settings = {"port": port, "port_out": port_out}
        children = [start(run_broker, settings, endpoints), start(run_fake_worker, endpoints.workers)]
        try:
            yield
        finally:
            for child in children:
                child.kill()
                child.join()


def measure(server: psutil.Process, port: int, load: Load, seconds: float) -> tuple[float, float]:
    """Send a load for some seconds; return the requests per second, and per CPU second of the server."""
    processes = [server, *server.children(recursive=True)]
    began, cpu = time.perf_counter(), cpu_seconds(processes)
    count, _ = asyncio.run(send(port, load, seconds, num_connections=NUM_CONNECTIONS))
    return count / (time.perf_counter() - began), count / (cpu_seconds(processes) - cpu)


def compare(names: Sequence[str], seconds: float, rounds: int) -> None:
    """Measure each server in each round, and print the table."""
    with ExitStack() as stack:
        stack.enter_context(backend())
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        servers = {name: stack.enter_context(running(name, port)) for name, port in ports.items()}
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for number in range(rounds + 1):  # round 0 warms everything up
            for name, server in servers.items():
                for load in LOADS:
                    rates = measure(server, ports[name], load, seconds if number else min(1.0, seconds))
                    if number:
                        found.setdefault((name, load.name), []).append(rates)
    print(f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}; {_versions(names)}")
    print(f"median of {rounds} rounds of {seconds:g} s; one text: {NUM_CONNECTIONS} connections; raw: 2\n")
    print("| server | load | requests/s | requests per CPU second | slowest to fastest round, requests/s |")
    print("|---|---|---|---|---|")
    for load, name in product(LOADS, names):
        wall, cpu = zip(*found[name, load.name], strict=True)
        spread = f"{min(wall):,.1f} to {max(wall):,.1f}"
        print(f"| {name} | {load.name} | {median(wall):,.1f} | {median(cpu):,.1f} | {spread} |")


def _versions(names: Sequence[str]) -> str:
    packages = sorted({name.partition("-")[0] for name in names} - {"gateway"} | {"uvicorn"})
    return ", ".join(f"{package} {version(package)}" for package in packages)


def main() -> None:
    """Compare the servers, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
    else:
        compare(args.servers, args.seconds, args.rounds)


if __name__ == "__main__":
    main()
