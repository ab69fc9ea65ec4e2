"""Loads: callers that send their next request after the reply (closed loop), or at given times (open loop)."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.arena.callers import Caller, OpenCaller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_FIRST_CALLERS = 32
_MAX_CALLERS = 1000


@dataclass
class Done:
    """What was done within the measured time.

    seconds: the times of the requests that were sent in it. sentences: of all requests; a request that lies in it
    only in part counts in part. requests: the number of all requests, those of the warm-up too.
    """

    seconds: list[float] = field(default_factory=list)
    sentences: float = 0.0
    requests: int = 0


@asynccontextmanager
async def opened(open_caller: OpenCaller, count: int) -> AsyncIterator[list[Caller]]:
    """Open this number of callers; close them at the end."""
    callers: list[Caller] = []
    try:
        for _ in range(count):
            callers.append(await open_caller())  # noqa: PERF401  # those that are open must be closed
        yield callers
    finally:
        for caller in callers:
            await caller.close()


def part_within(start: float, stop: float, begin: float, end: float) -> float:
    """Return which part of the time from start to stop lies between begin and end: 0.0 to 1.0."""
    return max(0.0, min(stop, end) - max(start, begin)) / (stop - start)


async def closed_loop(
    callers: Sequence[Caller], requests: Sequence[Sequence[str]], *, warm_s: float, seconds: float
) -> Done:
    """Let each caller send requests one after the other; measure what is done after the first warm_s seconds.

    requests: the texts of each; the callers take turns with them, again and again.
    """
    done = Done()
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    rest = itertools.cycle(requests)

    async def call(caller: Caller) -> None:
        while (sent := time.perf_counter()) < end:
            texts = next(rest)
            await caller.encode(texts)
            now = time.perf_counter()
            done.requests += 1
            if sent >= begin:
                done.seconds.append(now - sent)
            done.sentences += len(texts) * part_within(sent, now, begin, end)

    await asyncio.gather(*map(call, callers))
    return done


async def open_loop(open_caller: OpenCaller, arrivals: Sequence[float], texts: Sequence[str]) -> list[float]:
    """Send one text at each arrival, in seconds from now, whether earlier ones have replies or not.

    Returns the seconds from each scheduled arrival to its reply. A text waits for a free caller only if
    _MAX_CALLERS requests have no reply yet.
    """
    loop = asyncio.get_running_loop()
    async with opened(open_caller, _FIRST_CALLERS) as callers:
        idle = list(callers)
        slots = asyncio.Semaphore(_MAX_CALLERS)
        took: list[float] = []

        async def send(scheduled: float, text: str) -> None:
            async with slots:
                if not idle:
                    caller = await open_caller()
                    callers.append(caller)
                else:
                    caller = idle.pop()
                await caller.encode([text])
                took.append(loop.time() - scheduled)
                idle.append(caller)

        start = loop.time() + 0.1
        tasks = []
        for arrival, text in zip(arrivals, itertools.cycle(texts), strict=False):
            await asyncio.sleep(max(0.0, start + arrival - loop.time()))
            tasks.append(asyncio.create_task(send(start + arrival, text)))
        await asyncio.gather(*tasks)
        return took


@dataclass
class Beside:
    """What users and a bulk job got beside each other. users: seconds of each request; job_rate: sentences/s."""

    users: list[float] = field(default_factory=list)
    job_rate: float = 0.0


async def job_beside_users(
    open_caller: OpenCaller,
    job: Sequence[str],
    texts: Sequence[str],
    *,
    num_users: int,
    pause_s: float,
    seconds: float,
) -> Beside:
    """Run a bulk job again and again beside users, who pause after each reply.

    pause_s: the mean pause; pauses have an exponential distribution, the same in each call.
    """
    beside = Beside()
    async with opened(open_caller, num_users + 1) as (worker, *users):
        begin = time.perf_counter()
        end = begin + seconds

        async def work() -> None:
            finished = 0
            while time.perf_counter() < end:
                await worker.encode(job)
                finished += len(job)
                beside.job_rate = finished / (time.perf_counter() - begin)

        async def use(caller: Caller, number: int) -> None:
            rng = random.Random(number)
            own: Iterator[str] = itertools.cycle(texts[number::num_users])
            await asyncio.sleep(rng.expovariate(1 / pause_s))
            while (sent := time.perf_counter()) < end:
                await caller.encode([next(own)])
                beside.users.append(time.perf_counter() - sent)
                await asyncio.sleep(rng.expovariate(1 / pause_s))

        working = asyncio.create_task(work())
        await asyncio.gather(*(use(caller, number) for number, caller in enumerate(users)))
        with suppress(asyncio.CancelledError):
            await working
    return beside
