"""The poll loop between clients and workers: sockets here, decisions in scheduler and outbox.

It runs in the server process and owns three sockets:

    PULL    requests from clients
    XPUB    replies to clients, in manual mode: a subscription counts when the outbox has seen it
    ROUTER  workers, on a private ipc path

It never waits for anybody: every send is non-blocking, and what cannot go now is kept by the outbox.
"""

from __future__ import annotations

import ipaddress
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import zmq
from bert_serving.protocol import (
    Command,
    CommandRequest,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    Failed,
    Frames,
    Heartbeat,
    InfoReply,
    Ready,
    Refused,
    Result,
    ServingError,
    Stop,
    Unauthorized,
    Unavailable,
    reply_to_frames,
    request_from_frames,
    sender_of,
    worker_message_from_frames,
    worker_message_to_frames,
)

from ..metrics import BrokerMetrics, value_of
from ..settings import Settings, own_version
from .job import Job
from .outbox import Dropped, Outbox
from .scheduler import Failure, Scheduler

log = logging.getLogger(__name__)

#: What bert-serving-client 1.10.0 demands to hear.
COMPATIBLE_VERSION = "1.10.0"

_REQUESTS_PER_STEP = 512  # then workers and replies get their turn
_MAX_SUBSCRIPTION_BYTES = 1024
_HEARTBEAT_MS = 5_000  # a peer that is silent for three of them is gone
_FRESH_FORWARD_S = 60.0  # an idle worker tries its model more often than this
_STALLED_RETRY_MS = 10
_EXPIRE_EVERY_S = 1.0
_REPLIES_IN_PIPE = 128  # for each client inside libzmq; what is beyond waits in the outbox, counted in bytes
_LINGER_MS = 1_000
_FIRST_BYTES_OF_WARNING = 40


class PortInUse(Exception):
    """A port cannot be listened on; the message says which and why."""


@dataclass(slots=True)
class WorkerView:
    """What the broker knows of one worker process."""

    name: str
    routing_id: bytes | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    heard_at: float = 0.0
    refusal: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.routing_id is not None

    def to_info(self, now: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": "ready" if self.is_ready else "starting",
            "forward_age_s": round(self._forward_age_s(now), 3) if self.heartbeat else None,
            **self.facts,
        }

    def has_fresh_forward(self, now: float) -> bool:
        return self.is_ready and self._forward_age_s(now) < _FRESH_FORWARD_S

    def _forward_age_s(self, now: float) -> float:
        return now - self.heard_at + (self.heartbeat.forward_age_s if self.heartbeat else 0.0)


class Broker:
    """Owns every request between its arrival and its reply.

    worker_endpoint: where workers connect. max_seq_len: the length in force, in tokens.
    Raises PortInUse. Single-threaded: all methods are called by the server's loop.
    """

    def __init__(
        self, settings: Settings, *, worker_endpoint: str, worker_names: list[str], max_seq_len: int
    ) -> None:
        self._settings = settings
        self._started_at = datetime.now(timezone.utc).astimezone()
        self.workers = {name: WorkerView(name) for name in worker_names}
        self.termination_requested = False
        self._is_accepting = True
        self._next_expiry = 0.0
        self.metrics = BrokerMetrics()
        self._num_total_clients = 0
        self._garbage_log = _SparseLog()
        self._scheduler = Scheduler(
            queue_capacity=settings.queue_capacity,
            queue_bytes=settings.queue_mb << 20,
            max_batch_size=settings.max_batch_size,
            priority_batch_size=settings.priority_batch_size,
            max_seq_len=max_seq_len,
            show_tokens=settings.show_tokens_to_client,
        )
        self._outbox = Outbox(capacity_bytes=settings.outbox_mb << 20, max_age_s=settings.outbox_age)

        self._context = zmq.Context()
        self._requests = self._socket(zmq.PULL)
        self._requests.maxmsgsize = settings.max_message_mb << 20
        self._replies = self._socket(zmq.XPUB)
        self._replies.maxmsgsize = _MAX_SUBSCRIPTION_BYTES
        self._replies.xpub_manual = 1
        self._replies.xpub_nodrop = 1
        self._replies.sndhwm = _REPLIES_IN_PIPE
        self._workers_socket = self._socket(zmq.ROUTER)
        self._workers_socket.router_mandatory = 1
        self._workers_socket.sndhwm = 0  # two batches a worker at most, so nothing piles up
        self.poller = zmq.Poller()
        for socket in (self._requests, self._replies, self._workers_socket):
            self.poller.register(socket, zmq.POLLIN)
        try:
            self._bind(self._requests, settings.port)
            self._bind(self._replies, settings.port_out)
            self._workers_socket.bind(worker_endpoint)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Broker {self._scheduler!r} {self._outbox!r}>"

    # -- the loop's body -------------------------------------------------------------------------------

    def step(self, timeout_ms: int) -> None:
        """Wait for something to do, at most so long, and do all of it."""
        if self._outbox.has_deliverable:
            timeout_ms = min(timeout_ms, _STALLED_RETRY_MS)
        self.poller.poll(timeout_ms)
        now = time.monotonic()
        self._drain_subscriptions()
        self._drain_workers(now)
        self._drain_requests(now)
        # Just before work is given out, so that nothing is computed for nobody.
        for failure in self._scheduler.expire(now):
            self._answer_failure(failure, now)
        if now >= self._next_expiry:
            self._next_expiry = now + _EXPIRE_EVERY_S
            self._note_dropped(self._outbox.expire(now))
        for name, batch in self._scheduler.next_batches(now):
            self._send_to_worker(name, worker_message_to_frames(batch))
        self._outbox.deliver(self._try_send)

    def _drain_subscriptions(self) -> None:
        while (message := _receive(self._replies)) is not None:
            data = message[0].bytes
            if data[:1] == b"\x01":
                topic = self._outbox.subscribe(data[1:])
                if topic is not None:
                    self._replies.setsockopt(zmq.SUBSCRIBE, topic)
                    self._num_total_clients += 1
            elif data[:1] == b"\x00" and data[1:]:
                self._replies.setsockopt(zmq.UNSUBSCRIBE, self._outbox.topic_of(data[1:]))
                if self._outbox.unsubscribe(data[1:]):
                    cancelled = self._scheduler.cancel(data[1:])
                    self.metrics.cancelled.inc(len(cancelled))

    def _drain_workers(self, now: float) -> None:
        while (message := _receive(self._workers_socket)) is not None:
            routing_id = message[0].bytes
            name = routing_id.decode().partition("#")[0]
            self._on_worker_message(name, routing_id, [frame.buffer for frame in message[1:]], now)

    def _drain_requests(self, now: float) -> None:
        for _ in range(_REQUESTS_PER_STEP):
            message = _receive(self._requests)
            if message is None:
                return
            self._on_request(message, now)

    # -- clients ---------------------------------------------------------------------------------------

    def _on_request(self, message: list[zmq.Frame], now: float) -> None:
        frames: Frames = [frame.buffer for frame in message]
        try:
            request = request_from_frames(frames)
            if isinstance(request, CommandRequest):
                self._on_command(request, _peer_of(message[0]), now)
            else:
                self._on_encode(request, sum(map(len, frames)), now)
        except ServingError as error:
            self._refuse(frames, error, now)

    def _on_encode(self, request: EncodeRequest, num_bytes: int, now: float) -> None:
        self.metrics.requests.inc()
        if not self._is_accepting:
            raise Unavailable("the server is shutting down")
        self._scheduler.submit(request, now, num_bytes=num_bytes)

    def _on_command(self, request: CommandRequest, peer: str, now: float) -> None:
        self.metrics.commands.inc()
        if request.command is Command.TERMINATION:
            if not (self._settings.allow_remote_termination or _is_loopback(peer)):
                raise Unauthorized(f"TERMINATION is obeyed from this machine only, not from {peer}")
            log.info("termination requested peer=%s", peer)
            self.termination_requested = True
            return
        if request.command is Command.SHOW_METRICS:
            info: Mapping[str, Any] = {"text": self._metrics_text()}
        elif request.command is Command.SHOW_STATUS:
            info = self.status(now)
        else:
            info = self.config()
        self._post(reply_to_frames(InfoReply(request.identity, request.request_id, info)), now)

    def _refuse(self, frames: Frames, error: ServingError, now: float) -> None:
        """Answer a bad request; log it where there is nobody to answer."""
        sender = sender_of(frames)
        # A sender who has not subscribed may be a port scanner: hold nothing for it unless the frames
        # are those of a client.
        if sender is None or not (len(frames) == 4 or self._outbox.has_subscriber(sender[0])):
            self.metrics.malformed.inc()
            start = bytes(frames[0][:_FIRST_BYTES_OF_WARNING]) if frames else b""
            self._garbage_log.warning("ignored a message that is no request: %s; it begins with %r", error, start)
            return
        log.debug("refused request error=%s", error)
        self._post_error(*sender, error, now)

    def _post_error(self, identity: bytes, request_id: bytes, error: ServingError, now: float) -> None:
        self.metrics.errors.labels(error.code).inc()
        self._post(reply_to_frames(ErrorReply(identity, request_id, error)), now)

    def _post(self, frames: Frames, now: float) -> None:
        self._note_dropped(self._outbox.post(frames, now))

    def _note_dropped(self, dropped: list[Dropped]) -> None:
        for reply in dropped:
            self.metrics.dropped_replies.inc()
            log.warning("gave up a reply topic=%r reason=%s", reply.topic, reply.reason)

    def _try_send(self, frames: Frames) -> bool:
        try:
            self._replies.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    # -- workers ---------------------------------------------------------------------------------------

    def _on_worker_message(self, name: str, routing_id: bytes, frames: Frames, now: float) -> None:
        message = worker_message_from_frames(frames)
        worker = self.workers[name]
        worker.heard_at = now
        if isinstance(message, Ready):
            worker.routing_id, worker.facts, worker.refusal = routing_id, message.facts, None
            for failure in self._scheduler.worker_ready(name, message.facts):
                self._answer_failure(failure, now)
            facts = " ".join(f"{key}={value}" for key, value in message.facts.items())
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
        num_tokens = sum(result.num_tokens)
        log.debug(
            "batch done worker=%s id=%d texts=%d tokens=%d tokenize_ms=%.1f compute_ms=%.1f",
            name, result.batch_id, len(result.num_tokens), num_tokens, result.tokenize_ms, result.compute_ms,
        )  # fmt: skip
        self.metrics.batches.inc()
        self.metrics.texts.inc(len(result.num_tokens))
        self.metrics.tokens.inc(num_tokens)
        self.metrics.truncated.inc(len(result.truncated))
        self.metrics.batch_texts.observe(len(result.num_tokens))
        self.metrics.batch_tokens.observe(num_tokens)
        self.metrics.tokenize.observe(result.tokenize_ms / 1000)
        self.metrics.compute.observe(result.compute_ms / 1000)
        for job in self._scheduler.complete(name, result, now):
            self._answer(job, now)

    def _answer(self, job: Job, now: float) -> None:
        assert job.rows is not None
        tokens = job.tokens if job.show_tokens else None
        request = job.request
        self.metrics.latency.observe(now - job.arrived_at)
        self._post(
            reply_to_frames(
                EncodeReply(request.identity, request.request_id, job.rows, tokens, sorted(job.truncated))
            ),
            now,
        )

    def _answer_failure(self, failure: Failure, now: float) -> None:
        request = failure.job.request
        self._post_error(request.identity, request.request_id, failure.error, now)

    def _send_to_worker(self, name: str, frames: Frames) -> None:
        routing_id = self.workers[name].routing_id
        assert routing_id is not None
        try:
            self._workers_socket.send_multipart([routing_id, *frames], zmq.NOBLOCK, copy=False)
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
        self._outbox.deliver(self._try_send)

    def stop_workers(self) -> None:
        """Tell every worker that is ready to end."""
        for worker in self.workers.values():
            if worker.is_ready:
                self._send_to_worker(worker.name, worker_message_to_frames(Stop()))

    def close(self) -> None:
        """Close the ports; what libzmq still holds for clients gets a second to leave."""
        self._context.destroy(linger=_LINGER_MS)

    # -- answers to commands ---------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return what SHOW_CONFIG answers: the settings in force, and the versions behind them."""
        return {
            **self._settings.model_dump(),
            "server_version": COMPATIBLE_VERSION,
            "version": own_version(),
            "python_version": platform.python_version(),
            "pyzmq_version": zmq.pyzmq_version(),
            "zmq_version": zmq.zmq_version(),
            "server_start_time": self._started_at.isoformat(),
            "server_current_time": datetime.now(timezone.utc).astimezone().isoformat(),
        }

    def status(self, now: float) -> dict[str, Any]:
        """Return what SHOW_STATUS answers: the config, the counters and the state of each worker."""
        num_data, num_sys = value_of(self.metrics.requests), value_of(self.metrics.commands)
        return {
            **self.config(),
            "ready": self.is_ready,
            "workers": [worker.to_info(now) for worker in self.workers.values()],
            "queue_texts": self._scheduler.num_waiting,
            "open_requests": self._scheduler.num_jobs,
            "num_batch": int(value_of(self.metrics.batches)),
            "statistic": {
                "num_data_request": int(num_data),
                "num_sys_request": int(num_sys),
                "num_total_request": int(num_data + num_sys),
                "num_total_seq": int(value_of(self.metrics.texts)),
                "num_total_client": self._num_total_clients,
                "num_active_client": self._outbox.num_subscribers,
            },
        }

    def _metrics_text(self) -> str:
        self.metrics.queue_texts.set(self._scheduler.num_waiting)
        self.metrics.open_requests.set(self._scheduler.num_jobs)
        self.metrics.workers_ready.set(sum(worker.is_ready for worker in self.workers.values()))
        self.metrics.outbox_bytes.set(self._outbox.held_bytes)
        return self.metrics.text()

    # -- sockets ---------------------------------------------------------------------------------------

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.heartbeat_timeout = 3 * _HEARTBEAT_MS
        socket.tcp_keepalive = 1
        return socket

    def _bind(self, socket: zmq.Socket[bytes], port: int) -> None:
        host = self._settings.host
        try:
            socket.ipv6 = ":" in host
            socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EADDRINUSE:
                raise PortInUse(f"port {port} on {host} is in use") from exc
            raise PortInUse(f"cannot listen on {host} port {port}: {exc}") from exc


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


def _receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None


def _peer_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "unknown"


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
