"""Prometheus metrics of HTTP requests, added up over all gateway processes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_serving.protocol import ERROR_CODES
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ..buckets import SECONDS
from .texts import TextNotes

#: The route of a request whose path is not known.
UNKNOWN_ROUTE = "other"

log = logging.getLogger(__name__)

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_GAUGES = "gauge_livesum"  # the server process removes these files when their process has ended
_FILE_BYTES = 512 << 10  # the larger file needs about 200 kB
_REFUSALS = ("400", "408", "429", "431", "503")


class GatewayMetrics:
    """HTTP requests of all gateway processes, by route and status, and the state of each gateway process.

    Each process writes its counts to files in the folder that PROMETHEUS_MULTIPROC_DIR names. The process that
    answers /metrics adds up the files of all processes. Raises ValueError if the variable does not name a folder.
    If the disk has no room for its files, a process counts in its own memory: only it shows these counts.

    dialects: the dialect of each route. process: the name of this process. A process that is started again has the
    same name and continues the counts.
    num_in_flight: the number of requests that have no complete response yet. registry: the metrics of this process
    alone.
    """

    def __init__(
        self, dialects: Mapping[str, str], key_names: Sequence[str] = (), *, process: str = "gateway"
    ) -> None:
        # prometheus_client reads PROMETHEUS_MULTIPROC_DIR only once, when any module first imports it. If the
        # variable was not set then, metrics would stay in this process. So the variable is read again here.
        is_shared = _create_files(Path(os.environ.get(_FOLDER) or "no folder"), process)
        values.ValueClass = values.MultiProcessValue(lambda: process) if is_shared else values.MutexValue  # type: ignore[no-untyped-call]
        self.num_in_flight = 0
        self.registry = CollectorRegistry()
        self._dialects = {**dialects, UNKNOWN_ROUTE: UNKNOWN_ROUTE}
        self._add_counts(self._dialects, key_names)
        self._add_state(process)
        self._all = self.registry
        if is_shared:
            self._all = CollectorRegistry()
            MultiProcessCollector(self._all)  # type: ignore[no-untyped-call]

    def _add_counts(self, routes: Iterable[str], key_names: Sequence[str]) -> None:
        """Create every series whose labels are known: it must exist with the value zero before its first event."""
        self.requests = self._counter(
            "requests", "HTTP requests that got a response. 499: the caller left", "route", "status"
        )
        self.latency = self._histogram("request_seconds", "Time from an HTTP request to its response", "route")
        self.errors = self._counter("errors", "HTTP requests that got an error response", "route", "code")
        self.texts = self._counter("texts", "Texts whose vectors were computed for HTTP requests", "route")
        self.tokens = self._counter("tokens", "Tokens of these texts, special ones included", "route")
        self.callers_left = self._counter(
            "callers_left",
            "HTTP requests that were cancelled because their caller closed the connection before it had the "
            "response, or did not read the response in time",
            "route",
        )
        self.refusals = self._counter(
            "refusals",
            "HTTP requests and connections that were refused before or while they arrived: not HTTP (400), too "
            "slow (408), too many on one connection (429), head too large (431), all connections in use (503)",
            "status",
        )
        self.key_requests = self._counter(
            "key_requests", "HTTP requests by the name of their API key; only if there are keys", "key"
        )
        self.dropped_characters = self._counter(
            "dropped_characters",
            "Characters that were left out of texts because they are no text: NUL and lone surrogates",
        )
        self.lost_spans = self._counter("lost_spans", "Spans of HTTP requests that could not be exported")
        self.null_texts = self._counter(
            "null_texts", "Texts that could not be encoded and got null, because the request asked for it"
        )
        for route in routes:
            self.requests.labels(route, "200")
            for metric in (self.latency, self.texts, self.tokens, self.callers_left):
                metric.labels(route)
            for code in ERROR_CODES:
                self.errors.labels(route, code)
        for status in _REFUSALS:
            self.refusals.labels(status)
        for name in key_names:
            self.key_requests.labels(name)

    def _add_state(self, process: str) -> None:
        self._lag = self._histogram(
            "event_loop_lag_seconds",
            "How late a timer of a gateway's event loop is. While it is late, requests wait",
            "process",
        ).labels(process)
        self._in_flight = self._gauge("requests_in_flight", "HTTP requests without a complete response", process)
        self._connections = self._gauge("connections", "Open HTTP connections", process)
        self._max_connections = self._gauge(
            "max_connections",
            "HTTP connections that may be open: -http_max_connect, or fewer if the system allows fewer files",
            process,
        )
        self._held = self._gauge("held_bytes", "Bytes held for large bodies and replies of HTTP requests", process)
        self._held_capacity = self._gauge(
            "held_capacity_bytes", "Bytes that may be held so at most: -http_memory_mb", process
        )

    def observe(
        self,
        route: str,
        status: int,
        seconds: float,
        error_code: str | None = None,
        key_name: str | None = None,
    ) -> None:
        """Count a request that got its response. error_code: None if there was no error.

        key_name: the name of its API key; None if it had none or if no key is required.
        """
        if key_name is not None:
            self.key_requests.labels(key_name).inc()
        self.requests.labels(route, str(status)).inc()
        if error_code is not None:
            self.errors.labels(route, error_code).inc()
        self.latency.labels(route).observe(seconds)

    def count_followed(self, route: str) -> None:
        """Count a request whose response lasted as long as its caller wanted."""
        self.requests.labels(route, "200").inc()

    def count_texts(self, notes: TextNotes) -> None:
        """Count the texts of a request that were changed or refused."""
        if notes.num_dropped:
            self.dropped_characters.inc(notes.num_dropped)
        if notes.errors:
            self.null_texts.inc(len(notes.errors))

    def count_computed(self, route: str, num_texts: int, num_tokens: int) -> None:
        """Count texts whose vectors have been computed for a request of a route."""
        self.texts.labels(route).inc(num_texts)
        self.tokens.labels(route).inc(num_tokens)

    def count_refusal(self, status: int) -> None:
        """Count a message that was refused before it was known to be a request."""
        self.requests.labels(UNKNOWN_ROUTE, str(status)).inc()
        self.refusals.labels(str(status)).inc()

    def set_limits(self, *, max_connections: int, held_bytes: int) -> None:
        """Show the limits of this process."""
        self._max_connections.set(max_connections)
        self._held_capacity.set(held_bytes)

    def show_state(self, *, lag_s: float, num_connections: int, held_bytes: int) -> None:
        """Show the state of this process now. lag_s: how late a timer of its event loop was."""
        self._lag.observe(lag_s)
        self._in_flight.set(self.num_in_flight)
        self._connections.set(num_connections)
        self._held.set(held_bytes)

    def text(self, *, broker_up: bool) -> str:
        """Return the metrics of all gateway processes in Prometheus' text format."""
        return generate_latest(self._all).decode() + self.facts_text(broker_up=broker_up)

    def facts_text(self, *, broker_up: bool) -> str:
        """Return the metrics that are the same in all gateway processes."""
        registry = CollectorRegistry()
        registry.register(_Facts(broker_up, self._dialects))
        return generate_latest(registry).decode()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"bert_serving_http_{name}", documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, label: str) -> Histogram:
        name = f"bert_serving_http_{name}"
        return Histogram(name, documentation, [label], buckets=SECONDS, registry=self.registry)

    def _gauge(self, name: str, documentation: str, process: str) -> Gauge:
        gauge = Gauge(
            f"bert_serving_http_{name}",
            documentation,
            ["process"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        return gauge.labels(process)


@dataclass(eq=False)
class _Facts(Collector):
    """What a process knows without counting. Only the process that answers a scrape shows it."""

    broker_up: bool
    dialects: Mapping[str, str]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        yield GaugeMetricFamily(
            "bert_serving_broker_up",
            "Whether the broker answered this scrape. If it is 0, only the metrics of HTTP are shown",
            float(self.broker_up),
        )
        about = "Always 1; the dialect of each route. The rules in deploy/prometheus add it to other metrics"
        routes = GaugeMetricFamily("bert_serving_http_route_info", about, labels=["route", "dialect"])
        for route, dialect in self.dialects.items():
            routes.add_metric([route, dialect], 1)
        yield routes


def _create_files(folder: Path, process: str) -> bool:
    """Create prometheus_client's files for this process with all their blocks; return whether there was room.

    prometheus_client would create files without blocks and write to them through a memory map. If the disk is full
    then, the system ends the process with SIGBUS.
    """
    if not folder.is_dir():
        raise ValueError(f"{_FOLDER} must name a folder, got {str(folder)!r}")
    try:
        for kind in ("counter", "histogram", _GAUGES):
            path = folder / f"{kind}_{process}.db"
            if kind == _GAUGES or not _has_counts(path):
                _create_file(path)
    except OSError as exc:
        log.warning("/metrics will not show the HTTP requests of all gateways: cannot write to the disk: %s", exc)
        return False
    return True


def _has_counts(path: Path) -> bool:
    """Whether an earlier process of the same name has left its counts, and they can be read."""
    if not path.exists():
        return False
    try:
        with path.open("rb") as file:
            num_used = int.from_bytes(file.read(4), sys.byteorder, signed=True)
        MultiProcessCollector.merge([str(path)])  # type: ignore[no-untyped-call]
        if 0 <= num_used <= path.stat().st_size:
            return True
    except Exception as exc:  # of any type: the file may contain anything
        log.debug("cannot read %s: %s", path.name, exc)
    log.warning("the counts of an earlier process are lost: cannot read %s", path.name)
    return False


def _create_file(path: Path) -> None:
    partial = path.with_suffix(".partial")  # other processes read every .db file
    try:
        with partial.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
