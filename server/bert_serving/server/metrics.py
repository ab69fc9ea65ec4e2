"""Prometheus families of the broker and of a gateway. Each process has a registry of its own.

The broker's text travels to the gateway as the answer to SHOW_METRICS; the gateway appends its own.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

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


class BrokerMetrics:
    """What the broker counts. All series exist from the start, at zero."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Encode requests that arrived")
        self.commands = self._counter("commands", "Config, status and metrics requests that arrived")
        self.texts = self._counter("texts", "Texts encoded")
        self.tokens = self._counter("tokens", "Tokens encoded, special ones included")
        self.truncated = self._counter("truncated_texts", "Texts that were cut to the longest sequence")
        self.batches = self._counter("batches", "Batches computed")
        self.cancelled = self._counter("cancelled_requests", "Requests whose client went away")
        self.dropped_replies = self._counter("dropped_replies", "Replies that nobody fetched")
        self.malformed = self._counter("malformed_messages", "Messages without a sender to answer to")
        self.worker_restarts = self._counter("worker_restarts", "Workers that were replaced")
        self.errors = Counter(
            "bert_serving_errors", "Requests answered with an error", ["code"], registry=self.registry
        )
        for code in ERROR_CODES:
            self.errors.labels(code)
        self.latency = self._histogram("request_seconds", "Time from arrival to reply", _SECONDS)
        self.tokenize = self._histogram("tokenize_seconds", "Time to tokenize a batch", _SECONDS)
        self.compute = self._histogram("compute_seconds", "Time to compute a batch", _SECONDS)
        self.batch_texts = self._histogram("batch_texts", "Texts in a batch", _SIZES)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch", _SIZES)
        self.subscriptions = self._counter("subscriptions", "Clients that subscribed to their replies")
        self.clients = self._gauge("clients", "Clients that are connected")
        self.queue_texts = self._gauge("queue_texts", "Texts that wait for a worker")
        self.open_requests = self._gauge("open_requests", "Requests that are not answered yet")
        self.workers_ready = self._gauge("workers_ready", "Workers that can take a batch")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes of replies that wait for their client")

    def text(self) -> str:
        """Return all families in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(f"bert_serving_{name}", documentation, registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"bert_serving_{name}", documentation, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"bert_serving_{name}", documentation, buckets=buckets, registry=self.registry)


class GatewayMetrics:
    """What a gateway counts: HTTP requests by route and status."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bert_serving_http_requests",
            "HTTP requests answered",
            ["route", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "bert_serving_http_request_seconds",
            "Time from an HTTP request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.broker_up = Gauge(
            "bert_serving_broker_up", "Whether the broker answered this scrape", registry=self.registry
        )

    def text(self) -> str:
        """Return all families in Prometheus' text format."""
        return generate_latest(self.registry).decode()


def value_of(metric: MetricWrapperBase) -> float:
    """Return the present value of a counter or gauge without labels."""
    return float(next(iter(metric.collect())).samples[0].value)
