"""The loop between clients and workers.

Passes incoming messages to Scheduler and Replies, and carries out their decisions. The loop runs in the server
process and blocks only in `step`: every send is non-blocking, and a reply that cannot be sent now is held.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_serving.protocol import Unavailable
from bert_serving.protocol.workers import (
    Batch,
    Changed,
    Failed,
    Heartbeat,
    Ready,
    Result,
    worker_message_to_frames,
)

from ..settings import Settings
from .answers import Answers
from .budget import Budget, Chores
from .curve import CurveServer
from .device_metrics import DeviceMetrics
from .history import History
from .info_metrics import InfoMetrics
from .inspection import Inspection
from .intake import RETRY_RESTART_MS, Intake
from .job import Job
from .loop_clock import LoopClock
from .metrics import BrokerMetrics
from .observer import BrokerObserver, JobTracer
from .ports import Ports, PrivateEndpoints
from .repeat_metrics import RepeatMetrics
from .repeats import Repeats
from .replies import Replies, Unsubscribed
from .scheduler import Failure, Scheduler
from .sizes import ResultSizes
from .sparse_log import SparseLog
from .statistic import Statistic
from .status import StatusReport
from .workers import MessageForBroker, Unreadable, Workers

log = logging.getLogger(__name__)

_NUM_UNREAD = 4  # requests of the largest size that libzmq may hold before they are read
_PHASE_S = 0.005  # there are about ten phases, so even a step with much to do in each takes only 50 ms
_LAST_DELIVERY_S = 1.0


class Broker:
    """Owns every request from its arrival to its reply.

    endpoints: the addresses for workers and gateways. max_seq_len: the longest sequence, in tokens. token_rows:
    when the vectors of tokens are padded to one array, each text gets at least this many rows; None: as many rows
    as the longest text has. observers: are called for every request. tracer: makes traces of requests; None: there
    are no traces. clock: the loop's clock. Raises PortInUse or CurveError. Only the thread of the server's loop
    may call the methods.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        endpoints: PrivateEndpoints,
        worker_names: Sequence[str],
        max_seq_len: int,
        metrics: BrokerMetrics,
        token_rows: int | None = None,
        observers: Sequence[BrokerObserver] = (),
        tracer: JobTracer | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self._woke_at: float | None = None  # when `wait` has ended last
        self.clock = LoopClock()
        self._curve = None if settings.curve_dir is None else CurveServer(Path(settings.curve_dir))
        self._ports = Ports(
            host=settings.host,
            port=settings.port,
            port_out=settings.port_out,
            endpoints=endpoints,
            max_message_bytes=settings.max_message_mb << 20,
            num_children=len(worker_names) + settings.http_workers,
            max_growth=(settings.memory_mb + settings.cache_mb + _NUM_UNREAD * settings.max_message_mb) << 20,
            curve=self._curve,
        )
        sizes = ResultSizes(
            itemsize=2 if settings.fp16 else 4,
            num_layers=len(settings.pooling_layer or (-1,)),
            max_seq_len=max_seq_len,
            token_rows=token_rows,
            show_tokens=settings.show_tokens_to_client,
        )
        repeats = Repeats(sizes, cache_bytes=settings.cache_mb << 20)
        self._scheduler = Scheduler(
            memory_bytes=settings.memory_mb << 20,
            queue_capacity=settings.queue_capacity,
            flow_share=settings.flow_share,
            sizes=sizes,
            max_batch_size=settings.max_batch_size,
            priority_batch_size=settings.priority_batch_size,
            max_seq_len=max_seq_len,
            show_tokens=settings.show_tokens_to_client,
            clock=self.clock,
            repeats=repeats,
        )
        sparse_log = SparseLog()
        self._replies = Replies(self._ports.replies, metrics, sparse_log, max_age_s=settings.outbox_age)
        self._workers = Workers(self._ports.workers, worker_names, self.clock)
        InfoMetrics(metrics.registry, settings, self._workers.views)
        DeviceMetrics(metrics.registry, self._workers.views)
        statistic = Statistic(time.monotonic())
        report = StatusReport(settings, metrics, self._workers.views, statistic, worker_endpoint=endpoints.workers)
        RepeatMetrics(metrics.registry, repeats)
        self._history = History(metrics, self._scheduler, self._workers.views, self.clock)
        inspection = Inspection(
            report, metrics, self._scheduler, self._replies, self._workers, self._history, self.clock
        )
        self._answers = Answers(
            self._replies, metrics, self._scheduler.admission, token_rows=token_rows, observers=observers,
            tracer=tracer,
        )  # fmt: skip
        self._intake = Intake(
            settings, self._ports, self._scheduler, self._replies, self._answers, self._workers,
            metrics, statistic, inspection, sparse_log, observers=observers, tracer=tracer,
        )  # fmt: skip
        self._chores = Chores()

    def __repr__(self) -> str:
        return f"<Broker {self._scheduler!r} {self._replies!r} {self._workers!r}>"

    def step(self, timeout_ms: int) -> None:
        """Wait at most `timeout_ms` for messages; handle those that arrived, then send batches and replies."""
        self.wait(timeout_ms)
        self.handle_messages()

    def wait(self, timeout_ms: int) -> bool:
        """Wait at most `timeout_ms` until a message arrives or a watched file descriptor is readable.

        Return whether a watched file descriptor is readable.
        """
        if self._woke_at is not None:
            self._metrics.turn.observe(time.monotonic() - self._woke_at)
        has_news = self._ports.poll(0 if self._chores else self._replies.poll_ms(self._ms_to_deadline(timeout_ms)))
        self._woke_at = time.monotonic()
        return has_news

    def _ms_to_deadline(self, timeout_ms: int) -> int:
        deadline = self._scheduler.next_deadline
        if deadline is None:
            return timeout_ms
        return min(timeout_ms, max(0, math.ceil((deadline - time.monotonic()) * 1000)))

    def handle_messages(self) -> None:
        """Handle the messages that have arrived, then send batches and replies.

        Each phase stops when its budget is spent and continues in the next step. What workers have sent is always
        read: each of them has only a few batches.
        """
        now = time.monotonic()
        self.clock.turn(now)
        self._ports.keep_room(now)
        self._read_subscriptions(now)
        self._read_worker_messages(now)
        self._intake.read(now, _PHASE_S)
        self._fail_expired_jobs(now)  # before batches are sent, so that they contain no expired texts
        self._fail_jobs_during_outage(now)
        self._replies.expire(now, Budget(_PHASE_S))
        self._send_batches(now)
        self._replies.deliver(now, Budget(_PHASE_S))
        self._history.note(now)

    # -- for the supervisor ----------------------------------------------------------------------------

    def watch(self, descriptor: int) -> None:
        """Let `step` stop waiting when a file descriptor becomes readable."""
        self._ports.watch(descriptor)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        self._ports.unwatch(descriptor)

    def reload_keys(self) -> None:
        """Read the CURVE keys of the clients again. Holds for connections that clients open afterwards."""
        if self._curve is not None:
            self._curve.reload()

    def read_worker_messages(self) -> None:
        """Read what workers have sent, without sending anything to them. Call this before `worker_lost`."""
        self._read_worker_messages(time.monotonic())

    def worker_lost(self, name: str, pid: int) -> None:
        """Take back the batches of a process that is dead or is being killed, if it serves under this name."""
        if self._workers.lost(name, pid):
            self._answers.failed(self._scheduler.worker_lost(name), time.monotonic())

    def worker_ended(self, name: str, pid: int) -> str | None:
        """Note that a process has ended; return why it refused to serve, or None."""
        self.worker_lost(name, pid)
        return self._workers.take_refusal(pid)

    def count_worker_death(self, name: str) -> None:
        """Count a process that died or was killed because of a fault, not one that a reload has replaced."""
        if self._intake.is_accepting:  # a stopping server does not replace workers
            self._metrics.worker_restarts.labels(name).inc()

    def count_gateway_death(self, name: str) -> None:
        """Count a gateway process that died or was killed because of a fault."""
        if self._intake.is_accepting:
            self._metrics.gateway_restarts.labels(name).inc()

    def hung_workers(self, *, silent_s: float) -> dict[str, str]:
        """Return the workers that must be replaced, with the reasons: silent, hanging, or unreadable."""
        timeout_s = self._settings.worker_timeout
        overdue = dict.fromkeys(self._scheduler.overdue(timeout_s), "does not answer")
        faulty = self._workers.faulty(silent_s=silent_s, idle=self._scheduler.idle, timeout_s=timeout_s)
        return overdue | faulty

    @property
    def outdated_workers(self) -> list[str]:
        """The workers whose model is not the newest. They get no batches."""
        return self._scheduler.outdated

    def ready_pid(self, name: str) -> int | None:
        """Return the process id of the process that serves under this name, or None."""
        return self._workers.views[name].pid

    @property
    def termination_requested(self) -> bool:
        """Whether a client has asked the server to end."""
        return self._intake.termination_requested

    @property
    def num_open(self) -> int:
        """The number of requests without a reply."""
        return self._scheduler.num_jobs

    @property
    def num_held(self) -> int:
        """The number of requests without a reply, of replies that are held, and of subscribers."""
        return self._scheduler.num_jobs + self._replies.num_held

    @property
    def is_drained(self) -> bool:
        """Whether every accepted request has a reply, and all replies to connected clients are sent."""
        return self._scheduler.is_idle and self._replies.are_sent

    def stop_accepting(self) -> None:
        """Refuse new requests for vectors from now on; accepted requests are still computed."""
        self._intake.is_accepting = False

    def fail_all(self, reason: str) -> None:
        """Reply to every open request with Unavailable."""
        now = time.monotonic()
        while not self._scheduler.is_idle:  # in portions, because only so many errors may wait for one client
            error = Unavailable(reason, retry_after_ms=RETRY_RESTART_MS)
            self._answers.failed(self._scheduler.fail_all(error), now, Budget(_PHASE_S))
            self._replies.deliver(now, Budget(_PHASE_S))
        self._replies.deliver(now, Budget(_LAST_DELIVERY_S))

    def stop_workers(self) -> None:
        """Tell every ready worker to end."""
        self._workers.stop()

    def close(self) -> None:
        """Close the sockets. Waits up to one second for replies that are not sent yet."""
        self._ports.close()

    # -- clients ---------------------------------------------------------------------------------------

    def _read_subscriptions(self, now: float) -> None:
        for change in self._replies.changes(now, Budget(_PHASE_S)):
            if isinstance(change, Unsubscribed):
                self._chores.add(self._end_lost(self._scheduler.cancel(change.identity), now))
                continue
            self._metrics.subscriptions.inc()
            self._chores.add(self._scheduler.client_subscribed(change.identity))
            if change.missed is not None:
                self._intake.reply_to_command(change.missed, now)
        self._chores.run(Budget(_PHASE_S))

    def _end_lost(self, cancelled: Iterator[Job], now: float) -> Iterator[None]:
        """Count the requests of a client that has left; if it only lost its connection, it finds an error."""
        for job in cancelled:
            self._answers.cancelled(job, now)
            if not self._scheduler.has_job(job.request):  # else its client has sent it again already
                self._replies.post_lost(job.request, now)
            yield

    def _fail_expired_jobs(self, now: float) -> None:
        self._answers.failed(self._scheduler.expire(now), now, Budget(_PHASE_S))

    def _fail_jobs_during_outage(self, now: float) -> None:
        if (outage := self._intake.outage) is not None:
            self._answers.failed(self._scheduler.fail_all(outage), now, Budget(_PHASE_S))

    # -- workers ---------------------------------------------------------------------------------------

    def _read_worker_messages(self, now: float) -> None:
        for name, message in self._workers.messages():
            self._on_worker_message(name, message, now)

    def _on_worker_message(self, name: str, message: MessageForBroker, now: float) -> None:
        try:
            self._handle_worker_message(name, message, now)
        except Exception:  # an unexpected error must fail one batch, not the server
            log.exception("cannot handle a message of %s", name)
            self._answers.failed(self._scheduler.fail_in_flight(name, "internal error"), now)

    def _handle_worker_message(self, name: str, message: MessageForBroker, now: float) -> None:
        if isinstance(message, Result):
            self._on_result(name, message, now)
        elif isinstance(message, Heartbeat):
            self._scheduler.worker_progressed(name, message.num_forwards)
        elif isinstance(message, Failed):
            traces = self._scheduler.traces(name, message.batch_id)
            log.error(
                "batch failed worker=%s id=%d trace=%s", name, message.batch_id, traces, extra={"traces": traces}
            )
            log.debug("batch failed id=%d error=%s", message.batch_id, message.message)
            self._answers.failed(self._scheduler.fail(name, message.batch_id, message.message), now)
        elif isinstance(message, Unreadable):
            self._answers.failed(self._scheduler.fail_in_flight(name, "the worker's message cannot be read"), now)
        elif isinstance(message, Changed):
            self._scheduler.worker_changed(name, message.facts)
            log.info("%s is %s tokens_per_s=%d", name, message.facts.forward, message.facts.tokens_per_s)
        else:
            self._on_ready(name, message)

    def _on_ready(self, name: str, ready: Ready) -> None:
        self._scheduler.worker_ready(name, ready.facts)
        facts = " ".join(f"{key}={value}" for key, value in ready.facts.to_info().items() if key != "prompts")
        log.info("%s is ready: %s", name, facts)

    def _on_result(self, name: str, result: Result, now: float) -> None:
        num_texts, num_tokens = self._metrics.count_batch(name, result, self._scheduler.full_batch_tokens(name))
        traces = self._scheduler.traces(name, result.batch_id) if log.isEnabledFor(logging.DEBUG) else None
        log.debug(
            "batch done worker=%s id=%d texts=%d tokens=%d tokenize_ms=%.1f compute_ms=%.1f trace=%s",
            name, result.batch_id, num_texts, num_tokens, result.tokenize_ms, result.compute_ms, traces,
            extra={"traces": traces},
        )  # fmt: skip
        batch = None if self._tracer is None else self._scheduler.in_flight(name, result.batch_id)
        if self._tracer is not None and batch is not None:
            self._tracer.batch_done(name, result.batch_id, batch, result, now)
        for ended in self._scheduler.complete(name, result, now):
            if isinstance(ended, Failure):
                self._answers.failed([ended], now)
            else:
                self._answers.job_done(ended, now)

    def _send_batches(self, now: float) -> None:
        budget = Budget(_PHASE_S)
        for name, batch in self._scheduler.next_batches(now):
            self._send_batch(name, batch, now)
            if budget.is_spent:
                return

    def _send_batch(self, name: str, batch: Batch, now: float) -> None:
        try:
            frames = worker_message_to_frames(batch)
        except Exception:  # an accepted request cannot be written as frames: only that request must fail
            traces = batch.traces
            log.exception("cannot write batch id=%d trace=%s", batch.batch_id, traces, extra={"traces": traces})
            self._answers.failed(
                self._scheduler.fail(name, batch.batch_id, "the request cannot be sent to a worker"), now
            )
            return
        self._workers.send(name, frames)
