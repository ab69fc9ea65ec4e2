"""Prometheus metrics of the broker.

A gateway requests them as text with SHOW_METRICS, appends the metrics of all gateways, and returns both.
"""

from __future__ import annotations

from collections.abc import Iterable

from bert_serving.protocol import ERROR_CODES
from bert_serving.protocol.workers import Result, Vectors
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client import Counter as LabelledCounter
from prometheus_client.registry import Collector

from ..buckets import SECONDS
from .counting import Counter, Histogram

_SIZES = tuple(float(2**i) for i in range(15))

WORKER_STATES = ("starting", "ready", "stale")


class BrokerMetrics:
    """What the broker counts. All series exist from the start, with the value zero.

    latency: time from the arrival of a request to its reply. queue: time from the arrival of a request until a
    worker gets the first text of the request. tokenize, compute: time to tokenize or to compute a batch.
    """

    def __init__(self, worker_names: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Encode requests that arrived")
        self.commands = self._counter("commands", "Config, status and metrics requests that arrived")
        self.texts = self._counter("texts", "Texts encoded")
        self.tokens = self._counter("tokens", "Tokens encoded, special ones included")
        self.padding = self._counter(
            "padding_tokens", "Padding tokens computed in addition to the tokens of texts"
        )
        self.truncated = self._counter("truncated_texts", "Texts that were truncated because they were too long")
        self.batches = self._counter("batches", "Batches computed")
        self.cancelled = self._counter(
            "cancelled_requests", "Requests whose client disconnected or cancelled them"
        )
        self.dropped_replies = self._counter(
            "dropped_replies", "Replies that were dropped because their client did not fetch them"
        )
        self.malformed = self._counter(
            "malformed_messages", "Messages that are not requests and have no sender to reply to"
        )
        self.worker_restarts = self._counter("worker_restarts", "Workers that were replaced")
        self.errors = self._labelled_counter("errors", "Requests that failed, by error code", "code")
        for code in ERROR_CODES:
            self.errors.labels(code)
        self.latency = self._histogram("request_seconds", "Time from arrival to reply", SECONDS)
        self.queue = self._histogram("queue_seconds", "Time until a worker gets the first text", SECONDS)
        self.tokenize = self._histogram("tokenize_seconds", "Time to tokenize a batch", SECONDS)
        self.compute = self._histogram("compute_seconds", "Time to compute a batch", SECONDS)
        self.turn = self._histogram(
            "loop_turn_seconds", "Time of a turn of the server's loop, without waiting for messages", SECONDS
        )
        self.batch_texts = self._histogram("batch_texts", "Texts in a batch", _SIZES)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch", _SIZES)
        self.subscriptions = self._counter("subscriptions", "Subscriptions of clients to their replies")
        self.clients = self._gauge("clients", "Identities with a connected client")
        self.queue_texts = self._gauge("queue_texts", "Texts that wait for a worker")
        self.queue_capacity = self._gauge("queue_capacity_texts", "Texts that may wait for a worker at most")
        self.queue_age = self._gauge("queue_age_seconds", "Age of the oldest request that waits for a worker")
        self.open_requests = self._gauge("open_requests", "Requests without a reply yet")
        self.workers_ready = self._gauge("workers_ready", "Workers that can take a batch")
        self.held_bytes = self._gauge("held_bytes", "Bytes reserved for requests, their vectors and their replies")
        self.held_capacity = self._gauge("held_capacity_bytes", "Bytes that may be reserved at most")
        self.flows = self._gauge("flows", "Clients and HTTP callers for which bytes are reserved")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes of replies that wait for their client")
        self.worker_state = self._gauge(
            "worker_state",
            "1 for the state that a worker is in; stale: a ready worker that has computed nothing for a minute",
            "worker",
            "state",
        )
        self.busy = self._labelled_counter(
            "device_busy_seconds", "Time for which a worker's device has computed", "worker"
        )
        for name in worker_names:
            self.busy.labels(name)
            self.set_worker_state(name, "starting")

    def set_worker_state(self, name: str, state: str) -> None:
        """Set the state of a worker, one of WORKER_STATES."""
        for each in WORKER_STATES:
            self.worker_state.labels(name, each).set(each == state)

    def count_batch(self, worker: str, result: Result) -> tuple[int, int]:
        """Count a computed batch; return its number of texts and its number of tokens."""
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
        self.busy.labels(worker).inc(result.compute_ms / 1000)
        self.truncated.inc(num_truncated)
        self.batch_texts.observe(num_texts)
        self.batch_tokens.observe(num_tokens)
        self.tokenize.observe(result.tokenize_ms / 1000)
        self.compute.observe(result.compute_ms / 1000)
        return num_texts, num_tokens

    def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def _counter(self, name: str, documentation: str) -> Counter:
        counter = Counter(f"bert_serving_{name}", documentation)
        self.registry.register(counter)
        return counter

    def _labelled_counter(self, name: str, documentation: str, label: str) -> LabelledCounter:
        return LabelledCounter(f"bert_serving_{name}", documentation, [label], registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"bert_serving_{name}", documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"bert_serving_{name}", documentation, buckets)
        self.registry.register(histogram)
        return histogram


def value_of(metric: Collector) -> float:
    """Return the current value of a counter or gauge without labels."""
    return float(next(iter(metric.collect())).samples[0].value)
