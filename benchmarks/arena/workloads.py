"""The workloads: how texts arrive at a system, and what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.arena import texts
from benchmarks.arena.arrivals import poisson_arrivals
from benchmarks.arena.in_process import Driver
from benchmarks.arena.kinds import Running
from benchmarks.arena.load import closed_loop, job_beside_users, open_loop, opened
from benchmarks.arena.models import Model
from benchmarks.arena.results import CLIENT_CPU, JOB_RATE, RATE, SERVER_CPU, Values, latencies
from benchmarks.arena.served import Served
from benchmarks.spinning import busy_core

LENGTHS = (20, 64, 128, 256, 512, 2048, 8192)
LOADS = (50, 80, 95)  # percent of the capacity
USERS, PAUSE_S = 8, 0.2


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    bulk: texts of a bulk job; None: as many as suit the model. singles: texts that are encoded one by one.
    seconds, warm_s: the measured time of a load, and the time before it. tokens: in a workload of fixed lengths.
    clients: numbers of clients. close: texts whose vectors are compared with the reference.
    """

    bulk: int | None = None
    singles: int = 64
    seconds: float = 6.0
    warm_s: float = 1.0
    tokens: int = 16384
    clients: tuple[int, ...] = (1, 16, 32, 64, 256)
    close: int = 1000


QUICK = Scale(bulk=32, singles=4, seconds=0.5, warm_s=0.1, tokens=512, clients=(1, 16), close=20)


class Bout:
    """One system in one round, with what its workloads need to know."""

    def __init__(self, system: Running, model: Model, scale: Scale) -> None:
        self.system, self.model, self.scale = system, model, scale
        self.texts = texts.natural(scale.bulk or model.bulk)
        self.singles = texts.natural(scale.singles, seed=2)
        self.capacity: float | None = None  # sentences/s of many clients of one sentence each

    @property
    def server(self) -> Served | None:
        """The system, if it is a server."""
        return None if isinstance(self.system, Driver) else self.system

    def encode(self, many: Sequence[str]) -> float:
        """Encode the texts in one call; return the seconds."""
        return self.system.encode(many) if isinstance(self.system, Driver) else self.system.bulk(many)

    def each(self, some: Sequence[str]) -> list[float]:
        """Encode the texts one after the other; return the seconds of each."""
        if isinstance(self.system, Driver):
            return self.system.each(some)
        return asyncio.run(_each(self.system, some))


Found = Iterator[tuple[str, Values]]
Workload = Callable[[Bout], Found]


def warm_up(bout: Bout) -> None:
    """Encode texts of every length in every way, until the system is as fast as it will be."""
    bout.encode(bout.texts[:256])
    bout.each(bout.singles[:16])


def bulk(bout: Bout) -> Found:
    """Encode all texts in one call."""
    yield "bulk", {RATE: len(bout.texts) / bout.encode(bout.texts)}


def duplicates(bout: Bout) -> Found:
    """Encode texts of which each occurs twice in one call."""
    twice = texts.repeated(len(bout.texts))
    yield "duplicates", {RATE: len(twice) / bout.encode(twice)}


def one(bout: Bout) -> Found:
    """Encode one text after the other."""
    took = bout.each(bout.singles)
    yield "one sentence", {RATE: len(took) / sum(took), **latencies(took)}


def busy(bout: Bout) -> Found:
    """Encode one text after the other while another process keeps one core busy."""
    with busy_core():
        took = bout.each(bout.singles)
    yield "one sentence, one core busy", {RATE: len(took) / sum(took), **latencies(took)}


def lengths(bout: Bout) -> Found:
    """Encode texts that all have the same number of tokens."""
    for num_tokens in LENGTHS:
        if num_tokens <= bout.model.max_tokens:
            count = max(1, bout.scale.tokens // num_tokens)
            some = texts.of_tokens(bout.model.folder, num_tokens, count)
            yield f"{num_tokens} tokens", {RATE: count / bout.encode(some)}


def clients(bout: Bout) -> Found:
    """Let several clients send one text after the other (closed loop)."""
    if bout.server is None:
        return
    for count in bout.scale.clients:
        values = asyncio.run(_clients(bout, count, [[text] for text in texts.natural(1024)]))
        bout.capacity = max(bout.capacity or 0.0, values[RATE])
        yield f"{count} clients", values


def callers(bout: Bout) -> Found:
    """Let four clients send requests of 64 texts each (closed loop)."""
    if bout.server is None:
        return
    many = texts.natural(1024)
    yield "4 clients, 64 texts", asyncio.run(_clients(bout, 4, [many[i : i + 64] for i in range(0, 1024, 64)]))


def open_loads(bout: Bout) -> Found:
    """Send texts at random times, at a part of the rate that many clients reached (open loop)."""
    if bout.server is None:
        return
    if bout.capacity is None:
        count = max(bout.scale.clients)
        bout.capacity = asyncio.run(_clients(bout, count, [[text] for text in bout.texts]))[RATE]
    for percent in LOADS:
        rate = max(1.0, bout.capacity * percent / 100)
        arrivals = poisson_arrivals(rate, bout.scale.seconds, seed=percent) or [0.0]
        took = asyncio.run(open_loop(bout.server.open_caller, arrivals, texts.natural(1024)))
        yield f"open loop, {percent} %", {RATE: rate, **latencies(took)}


def beside(bout: Bout) -> Found:
    """Run a bulk job beside users who send one text, read the reply and pause."""
    if bout.server is None:
        return
    found = asyncio.run(
        job_beside_users(
            bout.server.open_caller,
            bout.texts,
            texts.natural(256, seed=3),
            num_users=USERS,
            pause_s=PAUSE_S,
            seconds=bout.scale.seconds,
        )
    )
    yield (
        f"bulk beside {USERS} users",
        {JOB_RATE: found.job_rate, **latencies(found.users or [bout.scale.seconds])},
    )


WORKLOADS: dict[str, Workload] = {
    "bulk": bulk,
    "one": one,
    "lengths": lengths,
    "clients": clients,
    "callers": callers,
    "beside": beside,
    "duplicates": duplicates,
    "busy": busy,
    "open": open_loads,  # the last, because a server is busy when a thousand clients leave (leaving_clients.py)
}


async def _each(server: Served, some: Sequence[str]) -> list[float]:
    async with opened(server.open_caller, 1) as (caller,):
        loop, took = asyncio.get_running_loop(), []
        for text in some:
            start = loop.time()
            await caller.encode([text])
            took.append(loop.time() - start)
        return took


async def _clients(bout: Bout, count: int, requests: Sequence[Sequence[str]]) -> Values:
    """Measure a closed loop, and the CPU time of a request in the server's own process and in the clients."""
    server, scale = bout.server, bout.scale
    assert server is not None
    async with opened(server.open_caller, count) as open_callers:
        server_cpu, client_cpu = server.own_cpu_seconds(), time.process_time()
        done = await closed_loop(open_callers, requests, warm_s=scale.warm_s, seconds=scale.seconds)
        values = {RATE: done.sentences / scale.seconds, **latencies(done.seconds or [scale.seconds])}
        values[CLIENT_CPU] = 1e6 * (time.process_time() - client_cpu) / done.requests
        if server_cpu is not None and (after := server.own_cpu_seconds()) is not None:
            values[SERVER_CPU] = 1e6 * (after - server_cpu) / done.requests
    return values
