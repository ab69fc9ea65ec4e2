"""Prometheus metrics of HTTP requests, added up over all gateway processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from bert_serving.protocol import ERROR_CODES
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from ..buckets import SECONDS
from .texts import TextNotes

#: The route of a request whose path is not known.
UNKNOWN_ROUTE = "other"

log = logging.getLogger(__name__)

_BROKER_UP = "bert_serving_broker_up"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_FILE_BYTES = 256 << 10  # the larger file needs about 100 kB


class GatewayMetrics:
    """HTTP requests of all gateway processes, by route and status.

    Each process writes its counts to files in the folder that PROMETHEUS_MULTIPROC_DIR names. The process that
    answers /metrics adds up the files of all processes. Raises ValueError if the variable does not name a folder.
    If the disk has no room for its files, a process counts in its own memory: only it shows these counts.
    """

    def __init__(self, routes: Sequence[str], key_names: Sequence[str] = ()) -> None:
        # prometheus_client reads PROMETHEUS_MULTIPROC_DIR only once, when any module first imports it. If the
        # variable was not set then, metrics would stay in this process. So the variable is read again here.
        is_shared = _create_files(Path(os.environ.get(_FOLDER) or "no folder"))
        values.ValueClass = values.get_value_class() if is_shared else values.MutexValue  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self.requests = Counter(
            "bert_serving_http_requests",
            "HTTP requests that got a response",
            ["route", "status"],
            registry=registry,
        )
        self.latency = Histogram(
            "bert_serving_http_request_seconds",
            "Time from an HTTP request to its response",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.errors = Counter(
            "bert_serving_http_errors", "HTTP requests that got an error response", ["code"], registry=registry
        )
        self.key_requests = Counter(
            "bert_serving_http_key_requests",
            "HTTP requests by the name of their API key",
            ["key"],
            registry=registry,
        )
        self.dropped_characters = Counter(
            "bert_serving_http_dropped_characters",
            "Characters that were left out because they are no text: NUL and lone surrogates",
            registry=registry,
        )
        self.null_texts = Counter(
            "bert_serving_http_null_texts",
            "Texts that could not be encoded, and got null as their result",
            registry=registry,
        )
        # Create every series now: it must exist with the value zero before its first event.
        for code in ERROR_CODES:
            self.errors.labels(code)
        for name in key_names:
            self.key_requests.labels(name)
        for route in routes:
            self.requests.labels(route, "200")
            self.latency.labels(route)
        self._all = registry
        if is_shared:
            self._all = CollectorRegistry()
            MultiProcessCollector(self._all)  # type: ignore[no-untyped-call]

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
            self.errors.labels(error_code).inc()
        self.latency.labels(route).observe(seconds)

    def count_texts(self, notes: TextNotes) -> None:
        """Count the texts of a request that were changed or refused."""
        if notes.num_dropped:
            self.dropped_characters.inc(notes.num_dropped)
        if notes.errors:
            self.null_texts.inc(len(notes.errors))

    def count_refusal(self, status: int) -> None:
        """Count a message that was refused before it was known to be a request."""
        self.requests.labels(UNKNOWN_ROUTE, str(status)).inc()

    def text(self, *, broker_up: bool) -> str:
        """Return the metrics of all gateway processes in Prometheus' text format."""
        up = (
            f"# HELP {_BROKER_UP} Whether the broker answered this scrape\n"
            f"# TYPE {_BROKER_UP} gauge\n"
            f"{_BROKER_UP} {float(broker_up)}\n"
        )
        return generate_latest(self._all).decode() + up


def _create_files(folder: Path) -> bool:
    """Create prometheus_client's files for this process with all their blocks; return whether there was room.

    prometheus_client would create files without blocks and write to them through a memory map. If the disk is full
    then, the system ends the process with SIGBUS.
    """
    if not folder.is_dir():
        raise ValueError(f"{_FOLDER} must name a folder, got {str(folder)!r}")
    try:
        for kind in ("counter", "histogram"):
            _create_file(folder / f"{kind}_{os.getpid()}.db")
    except OSError as exc:
        log.warning("/metrics will not show the HTTP requests of all gateways: cannot write to the disk: %s", exc)
        return False
    return True


def _create_file(path: Path) -> None:
    partial = path.with_suffix(".partial")  # other processes read every .db file
    try:
        with partial.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
