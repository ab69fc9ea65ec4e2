"""Prometheus families of the broker and of the gateways. The broker and all gateways have a registry each.

The broker's text travels to a gateway as the answer to SHOW_METRICS; the gateway appends the gateways' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector

from .te_metrics import TeCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = tuple(2**i for i in range(15))

ERROR_CODES = (
    "internal",
    "invalid_request",
    "payload_too_large",
    "unauthorized",
    "overloaded",
    "worker_failed",
    "unavailable",
    "deadline_exceeded",
)
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
        self.latency = self._histogram("request_seconds", "Time from arrival to reply", _SECONDS)
        self.queue = self._histogram("queue_seconds", "Time from arrival to the first worker", _SECONDS)
        self.tokenize = self._histogram("tokenize_seconds", "Time to tokenize a batch", _SECONDS)
        self.compute = self._histogram("compute_seconds", "Time to compute a batch", _SECONDS)
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
        self.te = TeCollector(self.batch_texts, self.batch_tokens, self.queue_texts)
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


class GatewayMetrics:
    """What all gateways of a server count together: HTTP requests by route and status.

    Each gateway writes to files of its own, in the folder that PROMETHEUS_MULTIPROC_DIR names, and whichever is
    asked adds them all up. A process must see that variable before it imports this module.
    """

    def __init__(self, routes: Sequence[str]) -> None:
        own = CollectorRegistry()
        self.requests = Counter(
            "bert_serving_http_requests", "HTTP requests answered", ["route", "status"], registry=own
        )
        self.latency = Histogram(
            "bert_serving_http_request_seconds",
            "Time from an HTTP request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.errors = Counter(
            "bert_serving_http_errors", "HTTP requests answered with an error", ["code"], registry=own
        )
        for code in ERROR_CODES:
            self.errors.labels(code)
        for route in routes:
            self.requests.labels(route, "200")
            self.latency.labels(route)
        self._all = CollectorRegistry()
        MultiProcessCollector(self._all)  # type: ignore[no-untyped-call]

    def observe(self, route: str, status: int, seconds: float, error_code: str | None = None) -> None:
        """Count a request that was answered, with an error of such a code or without."""
        self.requests.labels(route, str(status)).inc()
        if error_code is not None:
            self.errors.labels(error_code).inc()
        self.latency.labels(route).observe(seconds)

    def text(self, *, broker_up: bool) -> str:
        """Return all families in Prometheus' text format."""
        up = (
            f"# HELP {_UP} Whether the broker answered this scrape\n# TYPE {_UP} gauge\n{_UP} {float(broker_up)}\n"
        )
        return generate_latest(self._all).decode() + up


_UP = "bert_serving_broker_up"


def value_of(metric: MetricWrapperBase) -> float:
    """Return the present value of a counter or gauge without labels."""
    return float(next(iter(metric.collect())).samples[0].value)
