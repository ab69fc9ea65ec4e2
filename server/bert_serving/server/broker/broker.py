"""The loop between clients and workers: what arrives is handed to scheduler and outbox, what they decide is done.

It runs in the server process and never waits for anybody: every send is non-blocking, and a reply that
cannot go now is kept by the outbox.
"""

from __future__ import annotations

import logging
import time

import zmq
from bert_serving.protocol import (
    Batch,
    Command,
    CommandRequest,
    EncodeOptions,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    Failed,
    Frames,
    Heartbeat,
    InfoReply,
    Overloaded,
    PayloadTooLarge,
    Ready,
    Refused,
    Result,
    ServingError,
    Stop,
    Unauthorized,
    Unavailable,
    Vectors,
    reply_to_frames,
    request_from_frames,
    sender_of,
    worker_message_from_frames,
    worker_message_to_frames,
)

from ..settings import Settings
from .job import Job
from .late_subscribers import LateSubscribers
from .metrics import BrokerMetrics
from .outbox import Dropped, Outbox
from .ports import Ports, connection_of, is_loopback, peer_of, receive
from .scheduler import Failure, Scheduler
from .statistic import Statistic
from .status import StatusReport, WorkerView
from .subscriptions import Subscriptions

log = logging.getLogger(__name__)

_MESSAGES_PER_STEP = 512  # from one socket; then the others get their turn
_STALLED_RETRY_MS = 10
_EXPIRE_EVERY_S = 1.0
_FIRST_REQUEST_ID = b"1"  # of every old client
_FIRST_BYTES_OF_WARNING = 40


class Broker:
    """Owns every request between its arrival and its reply.

    worker_endpoint: where workers connect. max_seq_len: the length in force, in tokens. token_rows: rows of
    each text where all token vectors are answered as a rectangle; None: as many as the longest text has.
    Raises PortInUse. Single-threaded: all methods are called by the server's loop.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        worker_endpoint: str,
        worker_names: list[str],
        max_seq_len: int,
        token_rows: int | None = None,
    ) -> None:
        self._settings = settings
        self._token_rows = token_rows
        self._max_reply_bytes = max(settings.outbox_mb, settings.max_message_mb) << 20
        self.workers = {name: WorkerView(name) for name in worker_names}
        self.metrics = BrokerMetrics(worker_names)
        self.termination_requested = False
        self._statistic = Statistic(time.monotonic())
        self._report = StatusReport(
            settings, self.metrics, self.workers, self._statistic, worker_endpoint=worker_endpoint
        )
        self._is_accepting = True
        self._next_expiry = 0.0
        self._sparse_log = _SparseLog()
        self._scheduler = Scheduler(
            queue_capacity=settings.queue_capacity,
            queue_bytes=settings.queue_mb << 20,
            max_batch_size=settings.max_batch_size,
            priority_batch_size=settings.priority_batch_size,
            max_seq_len=max_seq_len,
            show_tokens=settings.show_tokens_to_client,
            result_bytes=self._max_reply_bytes,
        )
        self._outbox = Outbox(
            capacity_bytes=settings.outbox_mb << 20, max_age_s=settings.outbox_age, substitute=_given_up
        )
        self._subscriptions = Subscriptions()
        self._late_subscribers: LateSubscribers[CommandRequest | None] = LateSubscribers()
        self._ports = Ports(
            host=settings.host,
            port=settings.port,
            port_out=settings.port_out,
            worker_endpoint=worker_endpoint,
            max_message_bytes=settings.max_message_mb << 20,
        )
        #: Others may register what should end a `step` early.
        self.poller = self._ports.poller

    def __repr__(self) -> str:
        return f"<Broker {self._scheduler!r} {self._outbox!r}>"

    # -- the loop's body -------------------------------------------------------------------------------

    def step(self, timeout_ms: int) -> None:
        """Wait for something to do, at most so long, and do all of it."""
        if self._outbox.has_deliverable:
            timeout_ms = min(timeout_ms, _STALLED_RETRY_MS)
        self.poller.poll(timeout_ms)
        now = time.monotonic()
        self._drain_subscriptions(now)
        self._drain_workers(now)
        self._drain_requests(now)
        # Just before work is given out, so that nothing is computed for nobody.
        for failure in self._scheduler.expire(now):
            self._answer_failure(failure, now)
        if now >= self._next_expiry:
            self._next_expiry = now + _EXPIRE_EVERY_S
            self._note_dropped(self._outbox.expire(now))
        for name, batch in self._scheduler.next_batches(now):
            self._send_batch(name, batch, now)
        self._outbox.deliver(self._ports.reply)

    def _drain_subscriptions(self, now: float) -> None:
        for _ in range(_MESSAGES_PER_STEP):
            message = receive(self._ports.replies)
            if message is None:
                return
            kind, identity = message[0].bytes[:1], message[0].bytes[1:]
            if kind == b"\x01" and identity:  # an empty one would hear all
                self._on_subscription(connection_of(message[0]), identity, now)
            elif kind == b"\x00" and identity:
                self._on_unsubscription(connection_of(message[0]), identity)

    def _on_subscription(self, connection: int | None, identity: bytes, now: float) -> None:
        had_refused = self._subscriptions.has_refused(connection)
        if self._subscriptions.add(connection, identity):
            missed = self._late_subscribers.subscribe(identity, now)
            is_held = self._outbox.has_unclaimed(identity)
            topic = self._outbox.subscribe(identity)
            assert topic is not None
            self._ports.replies.setsockopt(zmq.SUBSCRIBE, topic)
            self._scheduler.claim(identity)
            self.metrics.subscriptions.inc()
            for question in missed:
                if question is not None and not is_held:  # its answer went out, to a twin alone
                    self._answer_command(question, now)
        elif not had_refused and self._subscriptions.has_refused(connection):
            self._sparse_log.warning("ignored a subscription: its connection has too many")

    def _on_unsubscription(self, connection: int | None, identity: bytes) -> None:
        self._ports.replies.setsockopt(zmq.UNSUBSCRIBE, self._outbox.topic_of(identity))
        if self._subscriptions.remove(connection, identity) and self._outbox.unsubscribe(identity):
            cancelled = self._scheduler.cancel(identity)
            self.metrics.cancelled.inc(len(cancelled))

    def _drain_workers(self, now: float) -> None:
        while (message := receive(self._ports.workers)) is not None:
            routing_id = message[0].bytes
            name = routing_id.decode().partition("#")[0]
            self._on_worker_message(name, routing_id, [frame.buffer for frame in message[1:]], now)

    def _drain_requests(self, now: float) -> None:
        for _ in range(_MESSAGES_PER_STEP):
            message = receive(self._ports.requests)
            if message is None:
                return
            self._on_request(message, now)

    # -- clients ---------------------------------------------------------------------------------------

    def _on_request(self, message: list[zmq.Frame], now: float) -> None:
        frames: Frames = [frame.buffer for frame in message]
        request = None
        try:
            request = request_from_frames(frames)
            if isinstance(request, CommandRequest):
                self._on_command(request, peer_of(message[0]), now)
            else:
                self._on_encode(request, sum(map(len, frames)), now)
        except ServingError as error:
            if request is None:
                self.metrics.te.arrived(1, is_predict=False)  # lest it fail without having come
            self._refuse(frames, error, now)
        except Exception:  # the outermost place where one request's trouble can stay its own
            log.exception("cannot handle a request")
            self._refuse(frames, ServingError("internal error"), now)

    def _on_encode(self, request: EncodeRequest, num_bytes: int, now: float) -> None:
        self.metrics.requests.inc()
        self.metrics.te.arrived(len(request.texts), is_predict=_is_predict(request.options))
        if request.request_id == _FIRST_REQUEST_ID:
            self._late_subscribers.ask(request.identity, None, now)
        # A time of its own: `now` is that of all requests which this step found, and would make them one.
        self._statistic.count_texts(request.identity, len(request.texts), time.monotonic())
        if not self._is_accepting:
            raise Unavailable("the server is shutting down")
        is_unsubscribed = not self._outbox.has_subscriber(request.identity)
        self._scheduler.submit(request, now, num_bytes=num_bytes, is_unsubscribed=is_unsubscribed)

    def _on_command(self, request: CommandRequest, peer: str, now: float) -> None:
        self.metrics.commands.inc()
        self._statistic.count_command(request.identity)
        if request.command is Command.TERMINATION:
            if not (self._settings.allow_remote_termination or is_loopback(peer)):
                raise Unauthorized(f"TERMINATION is obeyed from this machine only, not from {peer}")
            log.info("termination requested peer=%s", peer)
            self.termination_requested = True
            return
        self._answer_command(request, now)
        if request.request_id == _FIRST_REQUEST_ID:
            self._late_subscribers.ask(request.identity, request, now)

    def _answer_command(self, request: CommandRequest, now: float) -> None:
        if request.command is Command.SHOW_CONFIG:
            info = self._report.config(request.identity)
        else:
            self._set_gauges(now)
            if request.command is Command.SHOW_STATUS:
                info = self._report.status(request.identity, now, is_ready=self.is_ready)
            else:
                info = {"text": self.metrics.text()}
        self._post(reply_to_frames(InfoReply(request.identity, request.request_id, info)), now)

    def _refuse(self, frames: Frames, error: ServingError, now: float) -> None:
        """Answer a bad request; log it where there is nobody to answer."""
        sender = sender_of(frames)
        # A sender who has not subscribed may be a port scanner: hold nothing for it unless the frames
        # are those of a client.
        if sender is None or not (len(frames) == 4 or self._outbox.has_subscriber(sender[0])):
            self.metrics.malformed.inc()
            start = bytes(frames[0][:_FIRST_BYTES_OF_WARNING]) if frames else b""
            self._sparse_log.warning("ignored a message that is no request: %s; it begins with %r", error, start)
            return
        log.debug("refused request error=%s", error)
        self._post_error(*sender, error, now)

    def _post_error(self, identity: bytes, request_id: bytes, error: ServingError, now: float) -> None:
        self.metrics.errors.labels(error.code).inc()
        self.metrics.te.failed(error)
        self._post(reply_to_frames(ErrorReply(identity, request_id, error)), now)

    def _post(self, frames: Frames, now: float) -> None:
        self._outbox.post(frames, now)
        if self._outbox.is_over_capacity:
            self._outbox.deliver(self._ports.reply)
            self._note_dropped(self._outbox.trim())

    def _set_gauges(self, now: float) -> None:
        self.metrics.queue_texts.set(self._scheduler.num_waiting)
        self.metrics.queue_age.set(self._scheduler.oldest_age_s(now))
        self.metrics.open_requests.set(self._scheduler.num_jobs)
        for name, worker in self.workers.items():
            self.metrics.set_worker_state(name, worker.state(now))
        self.metrics.workers_ready.set(sum(worker.is_ready for worker in self.workers.values()))
        self.metrics.outbox_bytes.set(self._outbox.held_bytes)
        self.metrics.clients.set(self._outbox.num_subscribers)

    def _note_dropped(self, dropped: list[Dropped]) -> None:
        for reply in dropped:
            self.metrics.dropped_replies.inc()
            self._sparse_log.warning("gave up a reply topic=%r reason=%s", reply.topic, reply.reason)

    # -- workers ---------------------------------------------------------------------------------------

    def _on_worker_message(self, name: str, routing_id: bytes, frames: Frames, now: float) -> None:
        message = worker_message_from_frames(frames)
        worker = self.workers[name]
        worker.heard_at = now
        if isinstance(message, Ready):
            worker.routing_id, worker.facts, worker.refusal = routing_id, message.facts, None
            for failure in self._scheduler.worker_ready(name, message.facts):
                self._answer_failure(failure, now)
            facts = " ".join(f"{key}={value}" for key, value in message.facts.items() if key != "prompts")
            log.info("%s is ready: %s", name, facts)
        elif isinstance(message, Refused):
            worker.refusal = message.reason
        elif routing_id != worker.routing_id:
            log.debug("ignored a message of a worker that was replaced name=%s", name)
        elif isinstance(message, Heartbeat):
            worker.heartbeat = message
        elif isinstance(message, Result):
            self._on_result(name, message, now)
        elif isinstance(message, Failed):
            log.error("batch failed worker=%s id=%d error=%s", name, message.batch_id, message.message)
            for failure in self._scheduler.fail(name, message.batch_id, message.message):
                self._answer_failure(failure, now)

    def _on_result(self, name: str, result: Result, now: float) -> None:
        done = [outcome for outcome in result.outcomes if isinstance(outcome, Vectors)]
        num_texts = sum(len(vectors.num_tokens) for vectors in done)
        num_tokens = sum(sum(vectors.num_tokens) for vectors in done)
        log.debug(
            "batch done worker=%s id=%d texts=%d tokens=%d tokenize_ms=%.1f compute_ms=%.1f",
            name, result.batch_id, num_texts, num_tokens, result.tokenize_ms, result.compute_ms,
        )  # fmt: skip
        self.metrics.batches.inc()
        self.metrics.texts.inc(num_texts)
        self.metrics.tokens.inc(num_tokens)
        self.metrics.padding.inc(result.padding_tokens)
        self.metrics.busy.labels(name).inc(result.compute_ms / 1000)
        self.metrics.truncated.inc(sum(len(vectors.truncated) for vectors in done))
        self.metrics.batch_texts.observe(num_texts)
        self.metrics.batch_tokens.observe(num_tokens)
        self.metrics.tokenize.observe(result.tokenize_ms / 1000)
        self.metrics.compute.observe(result.compute_ms / 1000)
        for ended in self._scheduler.complete(name, result, now):
            if isinstance(ended, Failure):
                self._answer_failure(ended, now)
            else:
                self._answer(ended, now)

    def _answer(self, job: Job, now: float) -> None:
        request, result, usage, counts = job.request, job.result, job.usage(now), None
        self.metrics.latency.observe(usage.total_ms / 1000)
        self.metrics.queue.observe(usage.queue_ms / 1000)
        self.metrics.te.succeeded(len(request.texts), usage, is_predict=_is_predict(request.options))
        if result.ragged is None:
            assert result.rows is not None
            rows = result.rows
        elif job.options.ragged:
            rows, counts = result.joined()
        elif result.padded_bytes(self._token_rows) > self._max_reply_bytes:
            error = PayloadTooLarge(
                f"token vectors, padded, exceed {self._settings.outbox_mb} MiB: send fewer texts"
            )
            self._post_error(request.identity, request.request_id, error, now)
            return
        else:
            rows = result.padded(self._token_rows)
        tokens = result.tokens if job.options.show_tokens else None
        reply = EncodeReply(
            request.identity,
            request.request_id,
            rows,
            tokens,
            sorted(result.truncated),
            counts,
            result.offsets,
            usage if job.options.show_usage else None,
        )
        self._post(reply_to_frames(reply), now)

    def _answer_failure(self, failure: Failure, now: float) -> None:
        request = failure.job.request
        self._post_error(request.identity, request.request_id, failure.error, now)

    def _send_batch(self, name: str, batch: Batch, now: float) -> None:
        try:
            frames = worker_message_to_frames(batch)
        except Exception:  # whatever of a request was let in and cannot be written: it is to fail alone
            log.exception("cannot write batch id=%d", batch.batch_id)
            for failure in self._scheduler.fail(name, batch.batch_id, "the request cannot be passed on"):
                self._answer_failure(failure, now)
            return
        self._send_to_worker(name, frames)

    def _send_to_worker(self, name: str, frames: Frames) -> None:
        routing_id = self.workers[name].routing_id
        assert routing_id is not None
        try:
            self._ports.workers.send_multipart([routing_id, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as exc:
            # It died this instant; the supervisor will say so and the batch will go to another.
            log.warning("cannot send to %s: %s", name, exc)

    # -- for the supervisor ----------------------------------------------------------------------------

    def worker_lost(self, name: str) -> None:
        """Take a dead worker's batches back."""
        self.workers[name] = WorkerView(name)
        now = time.monotonic()
        for failure in self._scheduler.worker_lost(name):
            self._answer_failure(failure, now)

    def hung_workers(self, *, silent_s: float) -> list[str]:
        """Return the workers that are overdue with a batch, or have not been heard of for so long."""
        now = time.monotonic()
        silent = [w.name for w in self.workers.values() if w.is_ready and now - w.heard_at > silent_s]
        return sorted({*silent, *self._scheduler.overdue(now, self._settings.worker_timeout)})

    @property
    def is_ready(self) -> bool:
        """Whether every worker is there and has computed something lately."""
        now = time.monotonic()
        return self._is_accepting and all(worker.has_fresh_forward(now) for worker in self.workers.values())

    @property
    def is_drained(self) -> bool:
        """Whether everything that was accepted has been answered and sent."""
        return self._scheduler.is_idle and not self._outbox.has_deliverable

    def stop_accepting(self) -> None:
        """Refuse new texts from now on; what was accepted goes on."""
        self._is_accepting = False

    def fail_all(self, reason: str) -> None:
        """Answer everything that is still open with Unavailable."""
        now = time.monotonic()
        for failure in self._scheduler.fail_all(reason):
            self._answer_failure(failure, now)
        self._outbox.deliver(self._ports.reply)

    def stop_workers(self) -> None:
        """Tell every worker that is ready to end."""
        for worker in self.workers.values():
            if worker.is_ready:
                self._send_to_worker(worker.name, worker_message_to_frames(Stop()))

    def close(self) -> None:
        """Close the ports; what libzmq still holds for clients gets a second to leave."""
        self._ports.close()


def _is_predict(options: EncodeOptions) -> bool:
    return bool({"LOGITS", "CLASSIFICATION", "REGRESSION"} & set(options.pooling_strategy or ()))


def _given_up(frames: Frames, reason: str) -> Frames:
    """Return the error that takes the place of a reply."""
    error = Overloaded(f"the reply was given up: {reason}")
    return reply_to_frames(ErrorReply(bytes(frames[0]), bytes(frames[-1]), error))


class _SparseLog:
    """Warns at most every ten seconds, and says how many warnings it kept to itself."""

    _EVERY_S = 10.0

    def __init__(self) -> None:
        self._next = 0.0
        self._skipped = 0

    def warning(self, message: str, *args: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._skipped += 1
            return
        log.warning(f"{message} (%d more since the last warning)", *args, self._skipped)  # noqa: G004
        self._next, self._skipped = now + self._EVERY_S, 0
