"""Prometheus families of the broker.

Their text travels to a gateway as the reply to SHOW_METRICS; the gateway appends the families of the gateways.
"""

from __future__ import annotations

from collections.abc import Iterable

from bert_serving.protocol import ERROR_CODES
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

from ..buckets import SECONDS
from .tei_metrics import TeiMetrics

_SIZES = tuple(2**i for i in range(15))

WORKER_STATES = ("starting", "ready", "stale")


class BrokerMetrics:
    """What the broker counts. All series exist from the start, at zero.

    A request takes `queue` until a worker has its first text, `tokenize` and `compute` in the batches that hold
    its texts, and `latency` from its arrival to its reply.
    """

    def __init__(self, worker_names: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Encode requests that arrived")
        self.commands = self._counter("commands", "Config, status and metrics requests that arrived")
        self.texts = self._counter("texts", "Texts encoded")
        self.tokens = self._counter("tokens", "Tokens encoded, special ones included")
        self.padding = self._counter("padding_tokens", "Tokens computed for nothing, between those of the texts")
        self.truncated = self._counter("truncated_texts", "Texts that were cut to the longest sequence")
        self.batches = self._counter("batches", "Batches computed")
        self.cancelled = self._counter("cancelled_requests", "Requests whose client went away")
        self.dropped_replies = self._counter("dropped_replies", "Replies that nobody fetched")
        self.malformed = self._counter("malformed_messages", "Messages without a sender to answer to")
        self.worker_restarts = self._counter("worker_restarts", "Workers that were replaced")
        self.errors = self._counter("errors", "Requests answered with an error", "code")
        for code in ERROR_CODES:
            self.errors.labels(code)
        self.latency = self._histogram("request_seconds", "Time from arrival to reply", SECONDS)
        self.queue = self._histogram("queue_seconds", "Time from arrival to the first worker", SECONDS)
        self.tokenize = self._histogram("tokenize_seconds", "Time to tokenize a batch", SECONDS)
        self.compute = self._histogram("compute_seconds", "Time to compute a batch", SECONDS)
        self.batch_texts = self._histogram("batch_texts", "Texts in a batch", _SIZES)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch", _SIZES)
        self.subscriptions = self._counter("subscriptions", "Clients that subscribed to their replies")
        self.clients = self._gauge("clients", "Clients that are connected")
        self.queue_texts = self._gauge("queue_texts", "Texts that wait for a worker")
        self.queue_age = self._gauge("queue_age_seconds", "Age of the oldest request that waits for a worker")
        self.open_requests = self._gauge("open_requests", "Requests that are not answered yet")
        self.workers_ready = self._gauge("workers_ready", "Workers that can take a batch")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes of replies that wait for their client")
        self.worker_state = self._gauge(
            "worker_state",
            "1 for the state that a worker is in; stale: it computed nothing lately",
            "worker",
            "state",
        )
        self.busy = self._counter("device_busy_seconds", "Time that a worker's device spent on batches", "worker")
        for name in worker_names:
            self.busy.labels(name)
            self.set_worker_state(name, "starting")
        self.te = TeiMetrics(self.batch_texts, self.batch_tokens, self.queue_texts)
        self.registry.register(self.te)

    def set_worker_state(self, name: str, state: str) -> None:
        """Note the state of a worker, one of WORKER_STATES."""
        for each in WORKER_STATES:
            self.worker_state.labels(name, each).set(each == state)

    def text(self) -> str:
        """Return all families in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"bert_serving_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"bert_serving_{name}", documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"bert_serving_{name}", documentation, buckets=buckets, registry=self.registry)


def value_of(metric: MetricWrapperBase) -> float:
    """Return the present value of a counter or gauge without labels."""
    return float(next(iter(metric.collect())).samples[0].value)
