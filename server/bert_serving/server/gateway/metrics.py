"""Prometheus families of the gateways, which count together."""

from __future__ import annotations

from collections.abc import Sequence

from bert_serving.protocol import ERROR_CODES
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..buckets import SECONDS


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
            buckets=SECONDS,
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
