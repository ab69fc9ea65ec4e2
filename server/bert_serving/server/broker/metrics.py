"""Prometheus metrics of the broker.

A gateway requests them with SHOW_METRICS, appends the metrics of all gateways, and returns both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from bert_serving.protocol import ERROR_CODES
from bert_serving.protocol.workers import Result, Vectors

from ..buckets import SECONDS
from .admission import REASONS
from .counting import Counter, Gauge, Histogram, LabelledNumbers
from .job import PRIORITIES, Priority
from .text_format import Registry

_SIZES = tuple(float(2**i) for i in range(15))
_RATIOS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 4.0)

_PRIORITY_QUEUE = {
    "texts": "Texts that wait for a worker: those of small requests (up to -priority_batch_size texts), which go "
    "first, and those of large ones",
    "tokens": "Estimated tokens of the texts that wait, by priority",
    "age_seconds": "Age of the oldest small or large request that waits for a worker",
}

WORKER_STATES = ("starting", "ready", "stale")


class BrokerMetrics:
    """What the broker counts. All series exist from the start, with the value zero.

    latency: time from the arrival of a request to its reply. queue: time from the arrival of a request until a
    worker gets the first text of the request. tokenize, compute: time to tokenize or to compute a batch.
    """

    def __init__(self, worker_names: Iterable[str] = (), gateway_names: Iterable[str] = ()) -> None:
        self.registry = Registry()
        self._add_requests()
        self._add_queue()
        self._add_replies()
        self._add_batches()
        self._add_workers(worker_names)
        self._add_gateways(gateway_names)

    def _add_requests(self) -> None:
        self.requests = self._counter("requests", "Requests for vectors that arrived, from all clients")
        self.commands = self._counter(
            "commands", "Requests for the configuration, the status or the metrics that arrived"
        )
        self.errors = self._labelled("errors", "Requests that failed", "counter", "code")
        for code in ERROR_CODES:
            self.errors.labels(code)
        self.cancelled = self._counter("cancelled_requests", "Requests whose client left or cancelled them")
        self.malformed = self._counter(
            "malformed_messages", "Messages that are not requests and have no sender to reply to"
        )
        self.lost_spans = self._counter(
            "lost_spans", "Spans of the server process that could not be exported; 0 without traces"
        )
        self.zeromq_requests = self._counter(
            "zeromq_requests",
            "Requests for vectors that came from clients such as BertClient, not through HTTP",
        )
        self.open_requests = self._gauge("open_requests", "Requests without a reply yet")
        self.latency = self._histogram(
            "request_seconds", "Time from the arrival of a request to its reply", SECONDS
        )

    def _add_queue(self) -> None:
        self.queue = self._histogram(
            "queue_seconds", "Time from the arrival of a request until a worker gets its first text", SECONDS
        )
        self.queue_age = self._gauge("queue_age_seconds", "Age of the oldest request that waits for a worker")
        self.queue_texts = self._gauge("queue_texts", "Texts that wait for a worker")
        self.priority_texts, self.priority_tokens, self.priority_age = (
            self._labelled(f"priority_queue_{name}", meaning, "gauge", "priority")
            for name, meaning in _PRIORITY_QUEUE.items()
        )
        self.show_waiting(dict.fromkeys(PRIORITIES, (0, 0.0, 0.0)))
        self.queue_capacity = self._gauge(
            "queue_capacity_texts",
            "Texts that may wait at most: -queue_capacity, and one sixteenth more for small requests",
        )
        self.refused = self._labelled(
            "refused_requests",
            "Requests for which there was no room in the memory or in the queue, or never will be (too_large)",
            "counter",
            "reason",
        )
        self.show_refused(dict.fromkeys(REASONS, 0))
        self.held_bytes = self._gauge("held_bytes", "Bytes reserved for requests, their vectors and their replies")
        self.held_capacity = self._gauge("held_capacity_bytes", "Bytes that may be reserved at most: -memory_mb")
        self.flows = self._gauge("flows", "Clients and HTTP callers for which bytes are reserved")

    def _add_replies(self) -> None:
        self.clients = self._gauge("clients", "Identities with a connected client; each gateway has one")
        self.subscriptions = self._counter("subscriptions", "Subscriptions of clients to their replies")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes of replies that wait for their client")
        self.dropped_replies = self._counter(
            "dropped_replies", "Replies that were dropped because their client did not fetch them"
        )
        self.turn = self._histogram(
            "loop_turn_seconds",
            "Time of a turn of the server's loop, without waiting. While a turn lasts, messages wait",
            SECONDS,
        )

    def _add_batches(self) -> None:
        self.texts = self._counter("texts", "Texts encoded")
        self.tokens = self._counter("tokens", "Tokens encoded, special ones included")
        self.padding = self._counter("padding_tokens", "Padding tokens computed in addition")
        self.truncated = self._counter("truncated_texts", "Texts that were cut because they were too long")
        self.batches = self._counter("batches", "Batches computed")
        self.batch_texts = self._histogram("batch_texts", "Texts in a batch", _SIZES)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch", _SIZES)
        self.batch_fill = self._histogram(
            "batch_fill_ratio",
            "Tokens in a batch, divided by those of a full batch, which a worker computes in 80 ms. A very long "
            "text is a batch of more than 1",
            _RATIOS,
        )
        self.tokenize = self._histogram("tokenize_seconds", "Time to tokenize a batch", SECONDS)
        self.compute = self._histogram("compute_seconds", "Time to compute a batch", SECONDS)

    def _add_workers(self, worker_names: Iterable[str]) -> None:
        self.busy = self._labelled(
            "device_busy_seconds", "Time for which a worker's device has computed", "counter", "worker"
        )
        self.workers_ready = self._gauge("workers_ready", "Workers that can take a batch")
        self.worker_state = self._labelled(
            "worker_state",
            "1 for the state that a worker is in: starting, ready, or stale, which is a ready worker that has "
            "computed nothing for a minute",
            "gauge",
            "worker",
            "state",
        )
        self.worker_restarts = self._labelled(
            "worker_restarts",
            "Worker processes that died, were killed because of a fault, or could not be started, while the "
            "server served",
            "counter",
            "worker",
        )
        for name in worker_names:
            self.busy.labels(name)
            self.worker_restarts.labels(name)
            self.set_worker_state(name, "starting")

    def _add_gateways(self, gateway_names: Iterable[str]) -> None:
        self.gateway_restarts = self._labelled(
            "gateway_restarts",
            "HTTP processes that died, were killed because of a fault, or could not be started, until the "
            "server stops. The requests that a process had are lost with it",
            "counter",
            "process",
        )
        for name in gateway_names:
            self.gateway_restarts.labels(name)

    def set_worker_state(self, name: str, state: str) -> None:
        """Set the state of a worker, one of WORKER_STATES."""
        for each in WORKER_STATES:
            self.worker_state.labels(name, each).set(each == state)

    def show_refused(self, num_refused: Mapping[str, int]) -> None:
        """Show how many requests found no room, by reason."""
        for reason, number in num_refused.items():
            self.refused.labels(reason).set(number)

    def show_waiting(self, waiting: Mapping[Priority, tuple[int, float, float]]) -> None:
        """Show the texts, the tokens and the age in seconds of what waits, by priority."""
        metrics = (self.priority_texts, self.priority_tokens, self.priority_age)
        for priority, values in waiting.items():
            for metric, value in zip(metrics, values, strict=True):
                metric.labels(priority).set(value)

    def count_batch(self, worker: str, result: Result, full_batch_tokens: float) -> tuple[int, int]:
        """Count a computed batch; return its number of texts and its number of tokens.

        full_batch_tokens: see Scheduler.full_batch_tokens.
        """
        num_texts = num_tokens = num_truncated = 0
        for part in result.part_results:
            if isinstance(part, Vectors):
                num_texts += len(part.num_tokens)
                num_tokens += sum(part.num_tokens)
                num_truncated += len(part.truncated)
        self.batches.inc()
        self.texts.inc(num_texts)
        self.tokens.inc(num_tokens)
        self.padding.inc(result.padding_tokens)
        self.busy.labels(worker).inc(result.busy_ms / 1000)
        self.truncated.inc(num_truncated)
        self.batch_texts.observe(num_texts)
        self.batch_tokens.observe(num_tokens)
        if full_batch_tokens:
            self.batch_fill.observe(num_tokens / full_batch_tokens)
        self.tokenize.observe(result.tokenize_ms / 1000)
        self.compute.observe(result.compute_ms / 1000)
        return num_texts, num_tokens

    def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return self.registry.snapshot().text()

    def _counter(self, name: str, documentation: str) -> Counter:
        counter = Counter(f"bert_serving_{name}", documentation)
        self.registry.register(counter)
        return counter

    def _gauge(self, name: str, documentation: str) -> Gauge:
        gauge = Gauge(f"bert_serving_{name}", documentation)
        self.registry.register(gauge)
        return gauge

    def _labelled(
        self, name: str, documentation: str, kind: Literal["counter", "gauge"], *labels: str
    ) -> LabelledNumbers:
        suffix = "_total" if kind == "counter" else ""
        numbers = LabelledNumbers(f"bert_serving_{name}{suffix}", documentation, kind, *labels)
        self.registry.register(numbers)
        return numbers

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"bert_serving_{name}", documentation, buckets)
        self.registry.register(histogram)
        return histogram
