"""AsyncEncoder: vectors for the tasks of an event loop, in this process, in batches merged across tasks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bert_serving.client.checks import (
    TOKEN_LEVEL,
    check_request,
    options_of,
    rows_by_text,
    token_vectors_of,
    warn_of_cuts,
)
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    EncodeRequest,
    Rows,
    ServingError,
    Spans,
    Text,
    Texts,
    TokenVectors,
    Unavailable,
    check_spans,
)
from bert_serving.protocol.workers import Changed, Failed, Ready, Result

from ..broker.account import NoRoom
from ..broker.job import Job
from ..broker.metrics import BrokerMetrics, value_of
from ..broker.repeat_metrics import RepeatMetrics
from ..broker.repeats import Repeats
from ..broker.scheduler import Failure, Scheduler
from ..broker.sizes import ResultSizes
from ..model.spec import ModelSpec
from ..worker.encoder import Encoder
from .computing_thread import ComputingThread, Message

if TYPE_CHECKING:
    from bert_serving.protocol import EncodeOptionsDict
    from typing_extensions import Self, Unpack

log = logging.getLogger(__name__)

_NAME = "engine"  # of the only worker


class AsyncEncoder:
    """Computes vectors for the tasks of one event loop, in this process. Use it with `async with`.

    Texts of tasks that wait at the same time are computed in the same batches, as in the server: each caller has
    its share, small requests go before large ones, equal texts are computed once. Passes and tokenization run in
    threads of the engine, so the event loop stays free. A task that is cancelled takes its texts out of the queue.

    model: a folder, a name on the Hugging Face hub, an Encoder that nothing else uses meanwhile, or None for the
        demo model.
    memory_mb: MiB that requests and their vectors may take.
    queue_capacity: texts that may wait.
    flow_share: largest part of both that one caller may use, as far as others leave it free, 0 to 1.
    max_batch_size: texts in a batch.
    priority_batch_size: requests of at most this many texts go first.
    cache_mb: MiB for vectors that were computed before; 0: none are kept.
    options: those of Encoder, unless the model is an Encoder. With compile="auto", the engine compiles the forward
        pass while it works, and changes over.

    Raises ModelError for wrong options; `async with` raises it if the model cannot be loaded.

    >>> async with AsyncEncoder() as engine:
    ...     vectors = await engine.encode(["First do it", "then do it right"])
    """

    def __init__(
        self,
        model: Encoder | str | Path | None = None,
        *,
        memory_mb: int = 2048,
        queue_capacity: int = 524_288,
        flow_share: float = 1.0,
        max_batch_size: int = 256,
        priority_batch_size: int = 16,
        cache_mb: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(model, Encoder):
            if options:
                raise TypeError(f"{', '.join(options)}: an Encoder has its options already")
            self._model: Encoder | ModelSpec = model
        else:
            self._model = ModelSpec.checked(model_dir=model, **options)
        self._memory_bytes = memory_mb << 20
        self._queue_capacity = queue_capacity
        self._flow_share = flow_share
        self._max_batch_size = max_batch_size
        self._priority_batch_size = priority_batch_size
        self._cache_bytes = cache_mb << 20
        self.metrics = BrokerMetrics([_NAME])
        self._ids = itertools.count(1)
        self._waiting: dict[Job, asyncio.Future[Job]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_started = False
        self._error: ServingError | None = Unavailable("the engine is not running: use it with `async with`")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} waiting={len(self._waiting)}>"

    # -- from start to end -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Load the model. `async with` does this. Raises ModelError, and RuntimeError at a second call."""
        if self._is_started:
            raise RuntimeError("an AsyncEncoder can be started only once")
        self._is_started = True
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._thread = ComputingThread(self._model, self._say)
        self._thread.start()
        try:
            ready = await self._ready
        except asyncio.CancelledError:
            self._thread.stop()
            raise
        sizes = ResultSizes(max_seq_len=ready.facts.max_seq_len)
        repeats = Repeats(sizes, cache_bytes=self._cache_bytes)
        RepeatMetrics(self.metrics.registry, repeats)
        self._scheduler = Scheduler(
            memory_bytes=self._memory_bytes,
            queue_capacity=self._queue_capacity,
            flow_share=self._flow_share,
            sizes=sizes,
            max_batch_size=self._max_batch_size,
            priority_batch_size=self._priority_batch_size,
            max_seq_len=ready.facts.max_seq_len,
            repeats=repeats,
        )
        self._facts = ready.facts
        self._scheduler.worker_ready(_NAME, ready.facts)
        self.metrics.set_worker_state(_NAME, "ready")
        self._error = None

    async def close(self) -> None:
        """Refuse new calls, wait for those that run, and end the threads. `async with` does this."""
        if not self._is_started:
            return
        self._error = self._error or Unavailable("the engine is closed")
        if self._waiting:
            await asyncio.wait(self._waiting.values())
        if self._timer is not None:
            self._timer.cancel()
        self._thread.stop()
        await asyncio.to_thread(self._thread.join)

    # -- vectors ---------------------------------------------------------------------------------------

    async def encode(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        *,
        timeout_ms: int | None = None,
        flow: str | None = None,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows:
        """Return the vectors of the texts: (B, D) float32, one row for each text, in the order of the texts.

        Texts and options are those of BertClient.encode. timeout_ms: how long the vectors are waited for. flow: a
        name for the caller; callers share the engine fairly. None: each task is a caller.

        Raises TypeError, ValueError or InvalidRequest for bad texts and options, DeadlineExceeded (a
        TimeoutError), Overloaded if there is no room for the texts, WorkerFailed, and Unavailable if the engine
        does not run.
        """
        check_request(texts, is_tokenized=is_tokenized)
        return np.array((await self._warned(texts, options_of(options), None, timeout_ms, flow)).rows)

    async def encode_tokens(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        *,
        timeout_ms: int | None = None,
        flow: str | None = None,
        **options: Unpack[EncodeOptionsDict],
    ) -> list[TokenVectors]:
        """Return the tokens of each text with their vectors, (T, D) float32, and their offsets in characters.

        Other arguments and all errors are those of `encode`.
        """
        check_request(texts, is_tokenized=is_tokenized)
        asked = options_of(options, **TOKEN_LEVEL)
        return token_vectors_of(await self._warned(texts, asked, None, timeout_ms, flow))

    async def encode_spans(
        self,
        texts: list[str],
        spans: Sequence[Sequence[tuple[int, int]]],
        *,
        timeout_ms: int | None = None,
        flow: str | None = None,
        **options: Unpack[EncodeOptionsDict],
    ) -> list[Rows]:
        """Return one array for each text: the vectors of its spans, (number of spans, D) float32.

        spans: for each text, one or more pairs (start, end) in characters; see BertClient.encode_spans. Other
        arguments and all errors are those of `encode`.
        """
        check_request(texts, is_tokenized=False)
        check_spans(spans, len(texts))
        asked = options_of(options, ragged=True)
        return rows_by_text(await self._warned(texts, asked, spans, timeout_ms, flow))

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        spans: Sequence[Spans] | None = None,
        *,
        timeout_ms: int | None = None,
        flow: str | None = None,
        flow_share: float | None = None,
        trace: str | None = None,
    ) -> tuple[int, EncodeReply]:
        """Return (number of the request, reply), as AsyncBertClient.encode_reply does. Does not check the texts.

        flow_share: the largest part of the memory that the flow may use. trace: a name for the request in the log.
        """
        if self._error is not None:
            raise self._error
        number = next(self._ids)
        request = EncodeRequest(
            b"task %d" % id(asyncio.current_task()),
            b"%d" % number,
            texts,
            options,
            timeout_ms,
            spans,
            flow=flow,
            flow_share=flow_share,
            trace=trace,
        )
        self.metrics.requests.inc()
        try:
            job = await self._done(request)
            return number, self._reply(job)
        except ServingError as exc:
            self.metrics.errors.labels(exc.code).inc()
            raise

    async def _warned(
        self,
        texts: Sequence[Text],
        options: EncodeOptions,
        spans: Sequence[Spans] | None,
        timeout_ms: int | None,
        flow: str | None,
    ) -> EncodeReply:
        _, reply = await self.encode_reply(texts, options, spans, timeout_ms=timeout_ms, flow=flow)
        warn_of_cuts(reply)
        return reply

    async def _done(self, request: EncodeRequest) -> Job:
        """Return the job of a request when all its vectors are computed."""
        job = self._scheduler.submit(request, time.monotonic())
        if job.is_done:
            return job
        done: asyncio.Future[Job] = self._loop.create_future()
        self._waiting[job] = done
        self._send_batches()
        self._set_timer()
        try:
            return await done
        except asyncio.CancelledError:
            if self._scheduler.cancel_request(request.identity, request.request_id) is not None:
                self.metrics.cancelled.inc()
            raise
        finally:
            self._waiting.pop(job, None)

    def _reply(self, job: Job) -> EncodeReply:
        usage = job.usage(time.monotonic())
        self.metrics.latency.observe(usage.total_ms / 1000)
        self.metrics.queue.observe(usage.queue_ms / 1000)
        try:
            return job.to_reply(usage, token_rows=None)
        except NoRoom as exc:
            raise self._scheduler.admission.no_bytes(exc) from exc
        finally:
            job.reservation.release()

    # -- what the engine is and does -------------------------------------------------------------------

    @property
    def model(self) -> dict[str, object]:
        """What is served: device, dtype, parity and other facts, under the names of the server's status."""
        return self._facts.to_info()

    @property
    def status(self) -> dict[str, int]:
        """How much waits at the moment, and how much was done so far."""
        metrics = self.metrics
        return {
            "queue_texts": self._scheduler.num_waiting,
            "open_requests": self._scheduler.num_jobs,
            "num_batch": int(value_of(metrics.batches)),
            "num_encoded_seq": int(value_of(metrics.texts)),
            "num_encoded_token": int(value_of(metrics.tokens)),
        }

    def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format, under the names of the server's metrics."""
        metrics, scheduler = self.metrics, self._scheduler
        metrics.queue_texts.set(scheduler.num_waiting)
        metrics.queue_capacity.set(scheduler.admission.texts.capacity)
        metrics.queue_age.set(scheduler.oldest_age_s(time.monotonic()))
        metrics.open_requests.set(scheduler.num_jobs)
        metrics.workers_ready.set(self._error is None)
        metrics.held_bytes.set(scheduler.admission.memory.held)
        metrics.held_capacity.set(scheduler.admission.memory.capacity)
        metrics.flows.set(scheduler.admission.memory.num_flows)
        return metrics.text()

    # -- between the event loop and the computing thread -----------------------------------------------

    def _say(self, message: Message) -> None:
        """Take a message of the computing thread to the event loop. Called in other threads."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._hear, message)

    def _hear(self, message: Message) -> None:
        now = time.monotonic()
        if isinstance(message, Ready):
            if not self._ready.done():  # else its task was cancelled
                self._ready.set_result(message)
            return
        if isinstance(message, Exception):
            self._end(message)
            return
        if isinstance(message, Result):
            self.metrics.count_batch(_NAME, message)
            self._finish(self._scheduler.complete(_NAME, message, now))
        elif isinstance(message, Failed):
            self._finish(self._scheduler.fail(_NAME, message.batch_id, message.message))
        elif isinstance(message, Changed):
            self._facts = message.facts
            self._scheduler.worker_changed(_NAME, message.facts)
        self._send_batches()

    def _end(self, error: Exception) -> None:
        """Fail all that waits, because the computing thread has ended."""
        if not self._ready.done():
            self._ready.set_exception(error)
            return
        log.error("the engine has failed", exc_info=error)
        self._error = Unavailable(f"the engine has failed: {error}")
        self.metrics.set_worker_state(_NAME, "stale")
        self._finish(self._scheduler.fail_all(self._error))

    def _send_batches(self) -> None:
        for _, batch in self._scheduler.next_batches(time.monotonic()):
            self._thread.put(batch)

    def _finish(self, ended: Iterable[Job | Failure]) -> None:
        for each in ended:
            job = each.job if isinstance(each, Failure) else each
            done = self._waiting.get(job)
            if done is None or done.done():  # its task was cancelled
                continue
            if isinstance(each, Failure):
                done.set_exception(each.error)
            else:
                done.set_result(job)

    def _set_timer(self) -> None:
        """Call `_expire` when the next deadline passes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.next_deadline
        if deadline is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._finish(self._scheduler.expire(time.monotonic()))
        self._set_timer()
