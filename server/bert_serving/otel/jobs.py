"""The spans of the server process, made from the times that the broker knows.

    embeddings MODEL     a request: a child of the gateway's span, or of the span of a BertClient's program
        queue            from its arrival until a worker got its first text
        tokenize         once for each batch with texts of the request; linked to the batch
        compute          once for each batch with texts of the request; linked to the batch
        reply            from the arrival of the last vectors until the reply was written
    batch                a trace of its own, because it serves many requests; linked to each of them

A worker reports how long it has tokenized and computed a batch, but not when. So `tokenize` begins when the batch
was sent, and `compute` ends when its result arrived. Between them, the worker computed other batches.

No span has a text, a vector or a key. Methods are called in the thread of the server's loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from bert_serving.protocol import EncodeRequest, ServingError
from bert_serving.protocol.workers import Result, Vectors
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..server.broker.batching import InFlightBatch
from ..server.broker.job import Job
from .export import Export, OnLost

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_PROPAGATOR = TraceContextTextMapPropagator()


def _never_raises(method: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Log the exceptions of a method: no request may fail because of its trace."""

    @wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return method(*args, **kwargs)
        except Exception:
            log.exception("cannot make a span")
            return None

    return guarded


@dataclass(slots=True)
class Clock:
    """Converts monotonic seconds to nanoseconds since 1970. A span and its children use the same one."""

    offset_ns: int

    @classmethod
    def now(cls) -> Clock:
        """Return a clock that is right now."""
        return cls(time.time_ns() - time.monotonic_ns())

    def ns(self, monotonic_s: float) -> int:
        """Return the nanoseconds since 1970."""
        return int(monotonic_s * 1e9) + self.offset_ns


@dataclass(slots=True)
class RequestTrace:
    """A request that is traced. span: its span, which has not ended yet."""

    span: Span
    clock: Clock

    @property
    def context(self) -> Context:
        """The context of the children of the span."""
        return trace.set_span_in_context(self.span, Context())


class JobTraces:
    """Makes the spans of requests and of batches. The broker calls it as a JobTracer.

    endpoint, version, on_lost: see Export. model_name: what HTTP calls the model.
    """

    def __init__(self, endpoint: str | None, *, model_name: str, version: str, on_lost: OnLost) -> None:
        self._export = Export(endpoint, process="server", version=version, on_lost=on_lost)
        self._model_name = model_name

    def close(self) -> None:
        """See Export."""
        self._export.close()

    @_never_raises
    def begin(self, request: EncodeRequest, now: float, *, is_from_gateway: bool) -> RequestTrace | None:
        """Begin the span of a request that arrived now; return None if the sampler decides against it."""
        clock = Clock.now()
        span = self._export.tracer.start_span(
            f"embeddings {self._model_name}",
            context=_parent_of(request),
            kind=SpanKind.INTERNAL if is_from_gateway else SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": "embeddings",
                "gen_ai.provider.name": "bert_serving",
                "gen_ai.request.model": self._model_name,
                "bert_serving.texts": len(request.texts),
            },
            start_time=clock.ns(now),
        )
        return RequestTrace(span, clock) if span.is_recording() else None

    @_never_raises
    def batch_done(self, worker: str, batch_id: int, batch: InFlightBatch, result: Result, now: float) -> None:
        """Make the spans of a batch whose result has arrived now."""
        num_texts: dict[Job, int] = {}
        for slice_ in batch.slices:
            if isinstance(slice_.job.trace_handle, RequestTrace):
                num_texts[slice_.job] = num_texts.get(slice_.job, 0) + len(slice_)
        if not num_texts:
            return
        clock = Clock.now()
        facts: dict[str, str | int] = {"bert_serving.worker": worker, "bert_serving.batch": batch_id}
        span = self._export.batch_tracer.start_span(
            "batch",
            context=Context(),
            attributes={**facts, **_size_of(batch, result)},
            links=[Link(_trace_of(job).span.get_span_context()) for job in num_texts],
            start_time=clock.ns(batch.given_at),
        )
        for job, count in num_texts.items():
            attributes = {**facts, "bert_serving.texts": count}
            links = [Link(span.get_span_context())]
            begin, end = batch.given_at, now
            tokenized = min(end, begin + result.tokenize_ms / 1000)
            computes = max(begin, end - result.compute_ms / 1000)
            of = _trace_of(job)
            self._child(of, "tokenize", begin, tokenized, attributes=attributes, links=links)
            self._child(of, "compute", computes, end, attributes=attributes, links=links)
        span.end(clock.ns(now))

    @_never_raises
    def done(self, job: Job, now: float, replied_at: float) -> None:
        """End the span of a request whose last vectors arrived now; its reply was written at `replied_at`."""
        if (of := _begun(job)) is None:
            return
        self._child(of, "queue", job.arrived_at, now if job.begun_at is None else job.begun_at)
        self._child(of, "reply", now, replied_at)
        result = job.result
        of.span.set_attributes(
            {
                "gen_ai.response.model": self._model_name,
                "gen_ai.usage.input_tokens": sum(result.num_tokens),
                "bert_serving.fingerprint": result.model or "",
                "bert_serving.truncated": len(result.truncated),
            }
        )
        if result.layout is not None:
            of.span.set_attribute("gen_ai.embeddings.dimension.count", result.layout[1][-1])
        of.span.end(of.clock.ns(replied_at))

    @_never_raises
    def failed(self, job: Job, error: ServingError, now: float) -> None:
        """End the span of a request that gets an error."""
        if (of := _begun(job)) is not None:
            self._child(of, "queue", job.arrived_at, now if job.begun_at is None else job.begun_at)
            _fail(of, error.code, now)

    @_never_raises
    def cancelled(self, job: Job, now: float) -> None:
        """End the span of a request whose client no longer waits for it."""
        if (of := _begun(job)) is not None:
            self._child(of, "queue", job.arrived_at, now if job.begun_at is None else job.begun_at)
            _fail(of, "cancelled", now)

    @_never_raises
    def refused(self, request: EncodeRequest, error: ServingError, now: float, *, is_from_gateway: bool) -> None:
        """Make the span of a request that was refused at once."""
        if (of := self.begin(request, now, is_from_gateway=is_from_gateway)) is not None:
            _fail(of, error.code, now)

    def _child(
        self,
        of: RequestTrace,
        name: str,
        begin: float,
        end: float,
        *,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        """Make the span of a stage of a request, between two times in monotonic seconds."""
        span = self._export.tracer.start_span(
            name, context=of.context, attributes=attributes, links=links, start_time=of.clock.ns(begin)
        )
        span.end(of.clock.ns(end))


def _parent_of(request: EncodeRequest) -> Context:
    """Return the context of the caller's span; an empty one if the request names no span."""
    if (named := request.trace_context) is None:
        return Context()
    carrier = {"traceparent": named.traceparent, "tracestate": named.tracestate or ""}
    return _PROPAGATOR.extract(carrier, Context())


def _begun(job: Job) -> RequestTrace | None:
    return job.trace_handle if isinstance(job.trace_handle, RequestTrace) else None


def _trace_of(job: Job) -> RequestTrace:
    assert isinstance(job.trace_handle, RequestTrace)
    return job.trace_handle


def _fail(of: RequestTrace, error_type: str, now: float) -> None:
    of.span.set_attribute("error.type", error_type)
    of.span.set_status(StatusCode.ERROR)  # without the message, which may quote a text
    of.span.end(of.clock.ns(now))


def _size_of(batch: InFlightBatch, result: Result) -> dict[str, int]:
    computed = [part for part in result.part_results if isinstance(part, Vectors)]
    return {
        "bert_serving.requests": len({slice_.job for slice_ in batch.slices}),
        "bert_serving.texts": sum(map(len, batch.slices)),
        "bert_serving.tokens": sum(sum(part.num_tokens) for part in computed),
        "bert_serving.padding_tokens": result.padding_tokens,
    }
