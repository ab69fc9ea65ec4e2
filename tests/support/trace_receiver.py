"""A receiver of traces over OTLP/HTTP, which keeps every span that it gets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from tests.support.waiting import wait_until

#: So that spans arrive soon.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@dataclass(frozen=True)
class Span:
    """A span as it arrived. resource: the attributes of its process. trace_id, id, parent: hexadecimal digits."""

    proto: ProtoSpan
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return self.proto.name

    @property
    def kind(self) -> str:
        """Such as SERVER."""
        return ProtoSpan.SpanKind.Name(self.proto.kind).removeprefix("SPAN_KIND_")

    @property
    def trace_id(self) -> str:
        """Its trace."""
        return self.proto.trace_id.hex()

    @property
    def id(self) -> str:
        """Its own id."""
        return self.proto.span_id.hex()

    @property
    def parent(self) -> str:
        """The id of its parent; empty: it has none."""
        return self.proto.parent_span_id.hex()

    @property
    def links(self) -> list[str]:
        """The ids of the spans that it is linked to."""
        return [link.span_id.hex() for link in self.proto.links]

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes."""
        return _values(self.proto.attributes)

    @property
    def has_failed(self) -> bool:
        """Whether its status is an error."""
        return self.proto.status.code == self.proto.status.STATUS_CODE_ERROR

    def contains(self, other: Span) -> bool:
        """Whether another span lies within the time of this one."""
        mine, its = self.proto, other.proto
        return (
            mine.start_time_unix_nano <= its.start_time_unix_nano <= its.end_time_unix_nano
            and its.end_time_unix_nano <= mine.end_time_unix_nano
        )


def _values(attributes: Sequence[Any]) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class TraceReceiver:
    """A context manager: a server on a free port. bodies: what arrived. endpoint: its address."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver._receive(gzip.decompress(body) if "content-encoding" in self.headers else body)
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-type", "application/x-protobuf")
                reply = ExportTraceServiceResponse().SerializeToString()
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> TraceReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _receive(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        for of_process in request.resource_spans:
            resource = _values(of_process.resource.attributes)
            for scope in of_process.scope_spans:
                self._spans += [Span(span, resource) for span in scope.spans]

    @property
    def spans(self) -> list[Span]:
        """All spans so far."""
        return list(self._spans)

    def of_trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace so far."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def wait_for(self, trace_id: str, *names: str) -> dict[str, Span]:
        """Wait until the spans of a trace have exactly these names; return them by name."""
        expected = sorted(names)

        def found() -> list[str]:
            return sorted(span.name for span in self.of_trace(trace_id))

        wait_until(lambda: found() == expected, lambda: f"expected {expected}, got {found()}")
        return {span.name: span for span in self.of_trace(trace_id)}
