"""Simulates brokers with 1 to 1,000 workers, to find out where one broker ends and what replicas change.

    python -m benchmarks.scaling [--tokens_per_s 1000000] [--request_us 140] [--only workers|replicas]

The decisions are those of the real Scheduler, in simulated time. What costs time is given: the broker's time for a
request, a text and a batch, as `python -m benchmarks.broker` measures them, and the workers' rate, as
`python -m benchmarks.encoder` does. The result depends on these figures and on the load, and not on the machine
that runs the simulation. Not simulated: networks, memory limits, tokenizing, slow clients.

A broker is one thread: it takes what has arrived, sends batches, and then takes what has arrived meanwhile. A
worker computes its batches in turns. A client sends its next request when it has the reply.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import EncodeRequest
from bert_serving.protocol.workers import Batch, Result, Vectors
from bert_serving.server.broker.job import Job
from bert_serving.server.broker.scheduler import Scheduler
from bert_serving.server.broker.sizes import ResultSizes

from tests.support.model_facts import model_facts

_TOKENS = 30  # of each text
_TEXT = "x" * 120  # about as many tokens in the scheduler's estimate
_ROW = np.zeros((1, 1), np.float32)
_GIB = 1 << 30
_PHASE_S = 0.005  # a broker takes requests for so long, before it sends batches
_MICRO_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Costs:
    """What takes time.

    request_us, text_us, batch_us: of the broker. forward_ms: of a worker's forward pass, beside its tokens.
    """

    request_us: float
    text_us: float
    batch_us: float
    tokens_per_s: float
    forward_ms: float


@dataclass
class Client:
    """Sends a request, and the next one when it has the reply. num_texts: of each request."""

    name: bytes
    num_texts: int
    broker: int
    sent_at: float = 0.0
    times: list[float] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)


@dataclass
class Figures:
    """What a simulation has found. batch_texts: the mean size of a batch."""

    texts_per_s: float
    busy: float
    broker_busy: float
    batch_texts: float


class Worker:
    """Computes its batches in turns, one micro-batch at a time, as a real worker does."""

    def __init__(self, costs: Costs) -> None:
        self.is_busy = False
        self.busy_s = 0.0
        self._costs = costs
        self._batches: deque[tuple[Batch, int]] = deque()  # with the tokens that are left

    def add(self, batch: Batch) -> None:
        """Take a batch."""
        self._batches.append((batch, _TOKENS * sum(len(part.texts) for part in batch.parts)))

    @property
    def has_batches(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._batches)

    def turn(self) -> tuple[float, Batch | None]:
        """Compute a micro-batch; return the time that it takes, and the batch that it ends, if it ends one."""
        batch, tokens = self._batches.popleft()
        now = min(tokens, _MICRO_BATCH_TOKENS)
        seconds = self._costs.forward_ms / 1000 + now / self._costs.tokens_per_s
        self.busy_s += seconds
        if tokens > now:
            self._batches.append((batch, tokens - now))
        return seconds, None if tokens > now else batch


class Broker:
    """The real scheduler, and the time that a broker needs. A message takes no time on its way."""

    def __init__(self, costs: Costs, num_workers: int) -> None:
        self._costs = costs
        self._scheduler = Scheduler(
            memory_bytes=1000 * _GIB,
            queue_capacity=1 << 30,
            flow_share=1.0,
            sizes=ResultSizes(max_seq_len=256),
            max_batch_size=512,
            priority_batch_size=16,
            max_seq_len=256,
        )
        facts = model_facts(dimension=1, hidden_size=1, max_seq_len=256, tokens_per_s=costs.tokens_per_s)
        self.workers = {f"worker-{i}": Worker(costs) for i in range(num_workers)}
        for name in self.workers:
            self._scheduler.worker_ready(name, facts)
        self.requests: deque[EncodeRequest] = deque()
        self.results: deque[tuple[str, Batch]] = deque()
        self.free_at = self.busy_s = 0.0
        self.num_batches = self.num_texts = 0

    def step(self, now: float) -> tuple[list[Job], list[tuple[float, str, Batch]]]:
        """Handle what has arrived; return the finished jobs, and when a worker gets which batch."""
        costs, end = self._costs, now
        done: list[Job] = []
        while self.results:
            name, batch = self.results.popleft()
            for job in self._scheduler.complete(name, _result_of(batch), now):
                assert isinstance(job, Job)
                job.reservation.release()
                done.append(job)
        while self.requests and end < now + _PHASE_S:
            request = self.requests.popleft()
            end += (costs.request_us + costs.text_us * len(request.texts)) / 1e6
            self._scheduler.submit(request, end)
        sent = []
        for name, batch in self._scheduler.next_batches(end):
            end += costs.batch_us / 1e6
            sent.append((end, name, batch))
            self.num_batches += 1
            self.num_texts += sum(len(part.texts) for part in batch.parts)
        self.busy_s += end - now
        self.free_at = end
        return done, sent

    @property
    def totals(self) -> tuple[float, float, float, float]:
        """Texts, seconds of the broker, seconds of its workers, and batches until now."""
        computing_s = sum(worker.busy_s for worker in self.workers.values())
        return self.num_texts, self.busy_s, computing_s, self.num_batches


def _result_of(batch: Batch) -> Result:
    sizes = [len(part.texts) for part in batch.parts]
    vectors = [Vectors(np.broadcast_to(_ROW, (size, 1)), [_TOKENS] * size) for size in sizes]
    return Result(batch.batch_id, vectors, 0.0, 1.0)


class Simulation:
    """Brokers, workers and clients in simulated time. num_workers: of each broker."""

    def __init__(self, costs: Costs, clients: Sequence[Client], num_workers: int, num_brokers: int) -> None:
        self._brokers = [Broker(costs, num_workers) for _ in range(num_brokers)]
        self._clients = {client.name: client for client in clients}
        self._num_workers = num_workers
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._is_counting = False
        for client in clients:
            self._send(client, random.random() * 0.01)

    def run(self, seconds: float) -> Figures:
        """Let the clients send for so many seconds, of which the first half does not count; fill their `times`."""
        before = self._run_until(seconds / 2)
        self._is_counting = True
        after = self._run_until(seconds)
        texts, broker_s, computing_s, batches = (after - before) / (seconds / 2)
        num_brokers = len(self._brokers)
        busy = computing_s / self._num_workers / num_brokers
        return Figures(texts, busy, broker_s / num_brokers, texts / max(batches, 1e-9))

    def _run_until(self, end: float) -> npt.NDArray[np.float64]:
        while self._events[0][0] < end:
            now, _, event = heapq.heappop(self._events)
            event(now)
        totals: npt.NDArray[np.float64] = np.sum([broker.totals for broker in self._brokers], axis=0)
        return totals

    def _at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _send(self, client: Client, now: float) -> None:
        client.sent_at = now
        broker = self._brokers[client.broker]
        request = EncodeRequest(client.name, b"%d" % next(client.numbers), [_TEXT] * client.num_texts)

        def arrive(now: float) -> None:
            broker.requests.append(request)
            self._step(broker, now)

        self._at(now, arrive)

    def _step(self, broker: Broker, now: float) -> None:
        if now < broker.free_at:
            return  # it takes the message when it is free
        jobs, sent = broker.step(now)
        for at, name, batch in sent:
            self._at(at, partial(self._take, broker, name, batch))
        for job in jobs:
            client = self._clients[job.request.identity]
            if self._is_counting:
                client.times.append(broker.free_at - client.sent_at)
            self._send(client, broker.free_at)
        if broker.free_at > now:
            self._at(broker.free_at, partial(self._step, broker))

    def _take(self, broker: Broker, name: str, batch: Batch, now: float) -> None:
        worker = broker.workers[name]
        worker.add(batch)
        if not worker.is_busy:
            worker.is_busy = True
            self._compute(broker, name, now)

    def _compute(self, broker: Broker, name: str, now: float) -> None:
        seconds, finished = broker.workers[name].turn()
        self._at(now + seconds, partial(self._computed, broker, name, finished))

    def _computed(self, broker: Broker, name: str, finished: Batch | None, now: float) -> None:
        worker = broker.workers[name]
        worker.is_busy = worker.has_batches
        if worker.is_busy:
            self._compute(broker, name, now)
        if finished is not None:
            broker.results.append((name, finished))
            self._step(broker, now)


def percentiles(clients: Sequence[Client]) -> str:
    """Return the 50th and the 99th percentile of the clients' times, in ms."""
    times = np.concatenate([client.times for client in clients]) * 1000
    return f"{np.percentile(times, 50):.1f} | {np.percentile(times, 99):.1f}"


def show_workers(costs: Costs, seconds: float) -> None:
    """Print how one broker keeps more and more workers busy, with large requests and with single texts."""
    print("| workers | load | texts/s | workers busy | broker busy | texts in a batch | p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for num_workers in (1, 4, 16, 64, 250, 1000):
        for load, num_texts, per_worker in (("requests of 1,024 texts", 1024, 4), ("requests of 1 text", 1, 64)):
            count = min(max(8, num_workers * per_worker), 20_000)
            clients = [Client(b"client-%d" % i, num_texts, 0) for i in range(count)]
            # The time until each client has a reply.
            computing_s = count * num_texts * _TOKENS / costs.tokens_per_s / num_workers
            round_s = max(computing_s, count * (costs.request_us + costs.text_us * num_texts) / 1e6)
            found = Simulation(costs, clients, num_workers, 1).run(max(seconds, 4 * round_s))
            print(
                f"| {num_workers:,} | {load}, {count:,} clients | {found.texts_per_s:,.0f} | {found.busy:.0%} "
                f"| {found.broker_busy:.0%} | {found.batch_texts:.0f} | {percentiles(clients)} |",
                flush=True,
            )


def show_replicas(costs: Costs, seconds: float) -> None:
    """Print what happens to small requests beside large ones when 16 workers have 1, 2, 4 or 16 brokers."""
    print("| brokers | workers of each | texts/s | workers busy | small requests: p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|")
    for num_brokers in (1, 2, 4, 16):
        place = random.Random(0)
        large = [Client(b"large-%d" % i, 4096, place.randrange(num_brokers)) for i in range(16)]
        small = [Client(b"small-%d" % i, 1, place.randrange(num_brokers)) for i in range(64)]
        found = Simulation(costs, [*large, *small], 16 // num_brokers, num_brokers).run(10 * seconds)
        rates = f"{found.texts_per_s:,.0f} | {found.busy:.0%}"
        print(f"| {num_brokers} | {16 // num_brokers} | {rates} | {percentiles(small)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--request_us", type=float, default=140, help="of the broker, for a request of one text")
    parser.add_argument("--text_us", type=float, default=2, help="of the broker, for each text")
    parser.add_argument("--batch_us", type=float, default=100, help="of the broker, for each batch")
    parser.add_argument("--tokens_per_s", type=float, default=50_000, help="of a worker")
    parser.add_argument("--forward_ms", type=float, default=1, help="of a forward pass, beside its tokens")
    parser.add_argument("--seconds", type=float, default=1, help="simulated time of each row, at least")
    parser.add_argument("--only", choices=["workers", "replicas"])
    arguments = vars(parser.parse_args(argv))
    only, seconds = arguments.pop("only"), arguments.pop("seconds")
    costs = Costs(**arguments)
    print(costs, end="\n\n")
    random.seed(0)
    if only != "replicas":
        show_workers(costs, seconds)
        print()
    if only != "workers":
        show_replicas(costs, seconds)


if __name__ == "__main__":
    main()
