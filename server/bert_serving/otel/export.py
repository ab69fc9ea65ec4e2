"""Sends the spans of one process to an OTLP/HTTP receiver.

Rules of this file:
- Spans wait in a bounded queue, and a thread sends them. Nothing else ever waits for the receiver.
- A span that finds the queue full, or that cannot be sent, is lost. Lost spans are counted.
- The variables OTEL_... of the SDK hold. But a batch is always recorded, and may have any number of links, unless
  OTEL_SPAN_LINK_COUNT_LIMIT is set.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

_SERVICE_NAME = "bert-serving"
_SCOPE = "bert_serving"
_QUEUE_SIZE = 2048  # the SDK's defaults
_BATCH_SIZE = 512
_LOSS_LOG_S = 300.0
_CLOSE_S = 1.0  # the supervisor gives its children two seconds to end

log = logging.getLogger(__name__)

#: Counts spans that were lost.
OnLost = Callable[[int], None]


class Export:
    """The spans of one process, on their way to a receiver.

    endpoint: the receiver's base address, such as http://collector:4318; None: the variables OTEL_... name it.
    process: the name of the process. on_lost: called in the thread that ends a span, or in the exporting thread,
    but never in both at once.

    tracer: for spans that OTEL_TRACES_SAMPLER decides about. batch_tracer: for spans that are always recorded.
    """

    def __init__(self, endpoint: str | None, *, process: str, version: str, on_lost: OnLost) -> None:
        traces = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        # The exporter would log several lines for each attempt, as long as the receiver is away.
        logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)
        lock = threading.Lock()
        loss_log = LossLog()

        def count_lost(num_spans: int) -> None:
            with lock:
                on_lost(num_spans)
                loss_log.lost(num_spans, time.monotonic())

        exporter = CountedExporter(OTLPSpanExporter(traces), count_lost)
        self._processor = BoundedProcessor(exporter, count_lost)
        resource = _resource(process, version)
        self.tracer = self._tracer(resource, version, sampler=None)
        self.batch_tracer = self._tracer(resource, version, sampler=sampling.ALWAYS_ON)

    def _tracer(self, resource: Resource, version: str, *, sampler: sampling.Sampler | None) -> trace.Tracer:
        limits = None if os.environ.get("OTEL_SPAN_LINK_COUNT_LIMIT") else SpanLimits(max_links=SpanLimits.UNSET)
        provider = TracerProvider(sampler, resource, shutdown_on_exit=False, span_limits=limits)
        provider.add_span_processor(self._processor)
        return provider.get_tracer(_SCOPE, version)

    def close(self) -> None:
        """Send the spans that wait, for at most a second. What is left then is lost."""
        # The SDK would wait for half a minute if the receiver does not answer.
        thread = threading.Thread(target=self._processor.shutdown, name="close-traces", daemon=True)
        thread.start()
        thread.join(_CLOSE_S)


class LossLog:
    """Logs that spans are lost, at once and then rarely."""

    def __init__(self) -> None:
        self._num_lost = 0
        self._logged_at: float | None = None

    def lost(self, num_spans: int, now: float) -> None:
        """Note lost spans. now: monotonic seconds."""
        self._num_lost += num_spans
        if self._logged_at is None or now - self._logged_at >= _LOSS_LOG_S:
            log.warning("spans are lost: the receiver of traces does not take them num=%d", self._num_lost)
            self._num_lost, self._logged_at = 0, now


class CountedExporter(SpanExporter):
    """Counts the spans that another exporter has taken, and those that it could not send.

    num_taken: written by the exporting thread only.
    """

    def __init__(self, exporter: SpanExporter, on_lost: OnLost) -> None:
        self.num_taken = 0
        self._exporter = exporter
        self._on_lost = on_lost

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; return whether that was possible."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.num_taken += len(spans)
            if result is not SpanExportResult.SUCCESS:
                self._on_lost(len(spans))
        return result

    def shutdown(self) -> None:
        """End the other exporter."""
        self._exporter.shutdown()


class BoundedProcessor(BatchSpanProcessor):
    """The SDK's queue. A span that finds it full is counted; the SDK would only log it. For one thread."""

    def __init__(self, exporter: CountedExporter, on_lost: OnLost) -> None:
        self._capacity = _positive("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE_SIZE)
        # The SDK refuses batches that are larger than the queue, even if only the queue was configured.
        batch_size = min(_positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _BATCH_SIZE), self._capacity)
        super().__init__(exporter, max_queue_size=self._capacity, max_export_batch_size=batch_size)
        self._counted = exporter
        self._on_lost = on_lost
        self._num_queued = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._num_queued - self._counted.num_taken >= self._capacity:
            self._on_lost(1)
            return
        self._num_queued += 1
        super().on_end(span)


def _positive(variable: str, default: int) -> int:
    given = os.environ.get(variable, "")
    return int(given) if given.isascii() and given.isdigit() and int(given) > 0 else default


def _resource(process: str, version: str) -> Resource:
    """Return what all spans of the process have in common. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    ours = {"service.name": _SERVICE_NAME, "service.version": version, "bert_serving.process": process}
    return Resource.create().merge(Resource(ours)).merge(OTELResourceDetector().detect())
