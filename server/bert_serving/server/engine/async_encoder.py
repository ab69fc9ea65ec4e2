"""AsyncEncoder: vectors for the tasks of an event loop, in this process, in batches merged across tasks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bert_serving.client.checks import (
    TOKEN_LEVEL,
    check_request,
    options_of,
    rows_by_text,
    token_vectors_of,
)
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    EncodeRequest,
    InvalidRequest,
    Rows,
    ServingError,
    Spans,
    Text,
    Texts,
    TokenVectors,
    Unavailable,
    check_spans,
)
from bert_serving.protocol.codec import checked_request
from bert_serving.protocol.workers import Changed, Failed, ModelFacts, Ready, Refused, Result

from ..broker.account import NoRoom
from ..broker.job import Job
from ..broker.metrics import BrokerMetrics
from ..broker.repeat_metrics import RepeatMetrics
from ..broker.repeats import Repeats
from ..broker.scheduler import Failure, Scheduler
from ..broker.sizes import ResultSizes
from ..model.errors import ModelError
from ..model.spec import ModelSpec
from ..worker.encoder import Encoder
from .computing_thread import ComputingThread, Message

if TYPE_CHECKING:
    from typing import Self

    from bert_serving.protocol import EncodeOptionsDict
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

_NAME = "engine"  # of the only worker


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How much an engine has to do.

    queue_age_s: age of the oldest call that waits for its first batch. waiting_tokens: estimated tokens of the
    texts that wait. tokens_per_s: measured speed. busy_s: time for which the device has computed since the start.
    """

    queue_age_s: float
    waiting_tokens: float
    tokens_per_s: float
    busy_s: float


class AsyncEncoder:
    """Computes vectors for the tasks of one event loop, in this process. Use it with `async with`.

    Texts of tasks that wait at the same time are computed in the same batches, as in the server: each caller has
    its share, small requests go before large ones, equal texts are computed once. Passes and tokenization run in
    threads of the engine, so the event loop stays free. A task that is cancelled takes its texts out of the queue.

    model: a folder, a name on the Hugging Face hub, or None for the demo model; or an Encoder that nothing else
        uses meanwhile. On a CPU with several threads, an Encoder that another thread has loaded computes about a
        sixth slower: each of the two threads has OpenMP threads then, more than there are cores.
    memory_mb: MiB that the vectors of all calls may take, from when a call begins; texts are not counted.
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
        if "model_dir" in options or (options and isinstance(model, Encoder)):
            raise TypeError(
                f"{', '.join(options)}: the model is the first argument, and an Encoder has its options"
            )
        _check_number("memory_mb", memory_mb, 16)
        _check_number("queue_capacity", queue_capacity, 1)
        _check_number("max_batch_size", max_batch_size, 1)
        _check_number("priority_batch_size", priority_batch_size, 0)
        _check_number("cache_mb", cache_mb, 0)
        if type(flow_share) not in (int, float) or not 0 < flow_share <= 1:
            raise ModelError(f"flow_share must be a number above 0 and at most 1, got {flow_share!r}")
        self._model = model if isinstance(model, Encoder) else ModelSpec.checked(model_dir=model, **options)
        self._memory_bytes = memory_mb << 20
        self._queue_capacity = queue_capacity
        self._flow_share = flow_share
        self._max_batch_size = max_batch_size
        self._priority_batch_size = priority_batch_size
        self._cache_bytes = cache_mb << 20
        self.metrics = BrokerMetrics([_NAME])
        self._ids = itertools.count(1)
        self._waiting: dict[Job, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._thread: ComputingThread | None = None
        self._scheduler: Scheduler | None = None
        self._is_closed = False
        self._trouble: str | None = "the engine is not running: use it with `async with`"

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
        if self._thread is not None:
            raise RuntimeError("an AsyncEncoder can be started only once")
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[ModelFacts] = self._loop.create_future()
        self._thread = ComputingThread(self._model, self._say)
        self._thread.start()
        try:
            facts = await self._ready
        except asyncio.CancelledError:
            self._thread.stop()
            raise
        if self._is_closed:
            raise Unavailable("the engine was closed while it started")
        sizes = ResultSizes(max_seq_len=facts.max_seq_len)
        repeats = Repeats(sizes, cache_bytes=self._cache_bytes)
        RepeatMetrics(self.metrics.registry, repeats)
        self._scheduler = Scheduler(
            memory_bytes=self._memory_bytes,
            queue_capacity=self._queue_capacity,
            flow_share=self._flow_share,
            sizes=sizes,
            max_batch_size=self._max_batch_size,
            priority_batch_size=self._priority_batch_size,
            max_seq_len=facts.max_seq_len,
            repeats=repeats,
        )
        self._facts = facts
        self._scheduler.worker_ready(_NAME, facts)
        self.metrics.set_worker_state(_NAME, "ready")
        self._trouble = None

    async def close(self) -> None:
        """Refuse new calls, wait for those that run, and end the threads. `async with` does this.

        If this is cancelled, the calls that run end with Unavailable.
        """
        if self._thread is None:
            return
        self._is_closed = True
        self._trouble = self._trouble or "the engine is closed"
        try:
            if self._waiting:
                await asyncio.wait(self._waiting.values())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._scheduler is not None:
                self._finish(self._scheduler.fail_all(Unavailable(self._trouble)))
                self.metrics.set_worker_state(_NAME, "starting")
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

        Texts and options are those of BertClient.encode, without show_tokens. timeout_ms: how long the vectors are
        waited for. flow: a name for the caller; callers share the engine fairly. None: each task is a caller.

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
        """Return (number of the request, reply), as AsyncBertClient.encode_reply does.

        flow_share: the largest part of the memory that the flow may use. trace: a name for the request in the log.
        Accepts what the server accepts; raises InvalidRequest for all else.
        """
        number = next(self._ids)
        self.metrics.requests.inc()
        try:
            scheduler = self._running()
            if isinstance(timeout_ms, int | float) and timeout_ms < 0:
                raise InvalidRequest(f"timeout_ms must be a number of milliseconds, got {timeout_ms}")
            content = {
                "texts": _copied(texts),
                "spans": spans,
                "deadline_ms": timeout_ms,
                "flow": flow,
                "flow_share": flow_share,
                "trace": trace,
            }
            request = checked_request(b"task %d" % id(asyncio.current_task()), b"%d" % number, content)
            if spans is not None:
                spans = [[(start, end) for start, end in of_text] for of_text in spans]
            return number, await self._computed(scheduler, replace(request, options=options, spans=spans))
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
        if reply.truncated:
            warnings.warn(
                f"{len(reply.truncated)} of {len(texts)} texts are longer than max_seq_len and were cut; "
                f"the first is texts[{reply.truncated[0]}]",
                stacklevel=3,  # the caller of `encode` and its like
            )
        return reply

    async def _computed(self, scheduler: Scheduler, request: EncodeRequest) -> EncodeReply:
        """Return the reply to a request when all its vectors are computed."""
        job = scheduler.submit(request, time.monotonic())
        try:
            if not job.is_done:
                done: asyncio.Future[None] = self._loop.create_future()
                self._waiting[job] = done
                self._send_batches()
                self._set_timer()
                await done
            return self._reply(scheduler, job)
        finally:  # also if the task is cancelled, at whatever moment
            self._waiting.pop(job, None)
            if scheduler.cancel_request(request.identity, request.request_id) is not None:
                self.metrics.cancelled.inc()
            job.reservation.release()

    def _reply(self, scheduler: Scheduler, job: Job) -> EncodeReply:
        usage = job.usage(time.monotonic())
        self.metrics.latency.observe(usage.total_ms / 1000)
        self.metrics.queue.observe(usage.queue_ms / 1000)
        try:
            return job.to_reply(usage, token_rows=None)
        except NoRoom as exc:
            raise scheduler.admission.no_bytes(exc) from exc

    # -- what the engine is and does -------------------------------------------------------------------

    @property
    def model(self) -> dict[str, object]:
        """What is served: device, dtype, parity and other facts, under the names of the server's status."""
        self._running()
        return self._facts.to_info()

    @property
    def status(self) -> dict[str, int]:
        """How much waits at the moment, and how much was done so far."""
        scheduler, metrics = self._scheduler, self.metrics
        return {
            "queue_texts": 0 if scheduler is None else scheduler.num_waiting,
            "open_requests": 0 if scheduler is None else scheduler.num_jobs,
            "num_batch": int(metrics.batches.value),
            "num_encoded_seq": int(metrics.texts.value),
            "num_encoded_token": int(metrics.tokens.value),
        }

    def save_tokenizer(self, path: Path) -> None:
        """Write the model's tokenizer to a file, in the format of the package tokenizers."""
        self._running()
        assert self._thread is not None
        assert self._thread.encoder is not None
        self._thread.encoder.save_tokenizer(path)

    @property
    def load(self) -> EngineLoad:
        """How much there is to do at the moment."""
        scheduler = self._running()
        return EngineLoad(
            scheduler.oldest_age_s(time.monotonic()),
            scheduler.waiting_tokens,
            scheduler.tokens_per_s,
            self.metrics.busy.labels(_NAME).value,
        )

    def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format, under the names of the server's metrics."""
        metrics = self.metrics
        metrics.workers_ready.set(self._trouble is None)
        if (scheduler := self._scheduler) is not None:
            metrics.queue_texts.set(scheduler.num_waiting)
            metrics.queue_capacity.set(scheduler.admission.texts.capacity)
            metrics.queue_age.set(scheduler.oldest_age_s(time.monotonic()))
            metrics.show_waiting(scheduler.waiting(time.monotonic()))
            metrics.show_refused(scheduler.admission.num_refused)
            metrics.open_requests.set(scheduler.num_jobs)
            metrics.held_bytes.set(scheduler.admission.memory.held)
            metrics.held_capacity.set(scheduler.admission.memory.capacity)
            metrics.flows.set(scheduler.admission.memory.num_flows)
        return metrics.text()

    def _running(self) -> Scheduler:
        """Return the scheduler.

        Raises Unavailable if the engine does not run, and RuntimeError in another event loop.
        """
        if self._trouble is not None or self._scheduler is None:
            raise Unavailable(self._trouble or "the engine is starting")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this AsyncEncoder was started in another event loop")
        return self._scheduler

    # -- between the event loop and the computing thread -----------------------------------------------

    def _say(self, message: Message) -> None:
        """Take a message of the computing thread to the event loop. Called in other threads."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._hear, message)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Ready):
            if not self._ready.done():  # else its task was cancelled
                self._ready.set_result(message.facts)
        elif isinstance(message, Refused) and self._scheduler is None:
            if not self._ready.done():
                self._ready.set_exception(ModelError(message.reason))
        elif self._scheduler is not None:
            try:
                self._handle(self._scheduler, message)
            except Exception:  # an unexpected error must fail calls, and not leave them waiting
                log.exception("cannot handle what the computing thread has said")
                self._finish(self._scheduler.fail_in_flight(_NAME, "internal error"))
            self._send_batches()

    def _handle(self, scheduler: Scheduler, message: Result | Failed | Changed | Refused) -> None:
        if isinstance(message, Result):
            self.metrics.count_batch(_NAME, message, scheduler.full_batch_tokens(_NAME))
            self._finish(scheduler.complete(_NAME, message, time.monotonic()))
        elif isinstance(message, Failed):
            self._finish(scheduler.fail(_NAME, message.batch_id, message.message))
        elif isinstance(message, Changed):
            self._facts = message.facts
            scheduler.worker_changed(_NAME, message.facts)
        else:
            log.error("the engine has failed: %s", message.reason)
            self._trouble = f"the engine has failed: {message.reason}"
            self.metrics.set_worker_state(_NAME, "stale")
            self._finish(scheduler.fail_all(Unavailable(self._trouble)))

    def _send_batches(self) -> None:
        assert self._scheduler is not None
        assert self._thread is not None
        try:
            now = time.monotonic()
            self._finish(self._scheduler.expire(now))  # first, so that batches contain no expired texts
            for _, batch in self._scheduler.next_batches(now):
                self._thread.put(batch)
        except Exception:
            log.exception("cannot send batches")
            self._finish(self._scheduler.fail_all(Unavailable("internal error")))

    def _finish(self, ended: Iterable[Job | Failure]) -> None:
        for each in ended:
            done = self._waiting.get(each.job if isinstance(each, Failure) else each)
            if done is None or done.done():  # its task was cancelled
                continue
            if isinstance(each, Failure):
                # An error of its own for each caller, because raising it writes to it.
                error = each.error
                done.set_exception(type(error)(error.message, retry_after_ms=error.retry_after_ms))
            else:
                done.set_result(None)

    def _set_timer(self) -> None:
        """Call `_expire` when the next deadline passes."""
        assert self._scheduler is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.next_deadline
        if deadline is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        assert self._scheduler is not None
        self._finish(self._scheduler.expire(time.monotonic()))
        self._set_timer()


def _copied(texts: object) -> object:
    """Return the texts of a call, so that the caller may change the list before they are computed."""
    if not isinstance(texts, list):
        return texts
    return [text.copy() if isinstance(text, list | dict) else text for text in texts]


def _check_number(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ModelError(f"{name} must be a whole number from {least}, got {value!r}")
