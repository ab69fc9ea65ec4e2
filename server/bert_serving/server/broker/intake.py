"""Reads the messages of clients and of gateways: accepts requests, answers commands, and refuses the rest."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import zmq
from bert_serving.protocol import (
    Command,
    CommandRequest,
    EncodeRequest,
    Frames,
    InfoReply,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
    announced_texts,
    is_command,
    request_from_frames,
    sender_of,
)
from bert_serving.protocol.trace_names import quoted

from ..settings import Settings
from .account import Reservation
from .admission import check_length
from .answers import Answers
from .budget import Budget
from .inspection import Inspection
from .job_queue import flow_of
from .metrics import BrokerMetrics
from .observer import BrokerObserver, JobTracer
from .ports import Ports, is_loopback, peer_of
from .replies import Replies
from .scheduler import Scheduler
from .sparse_log import SparseLog
from .statistic import Statistic
from .workers import Workers

log = logging.getLogger(__name__)

_NUM_REQUEST_FRAMES = 4
# After so many refused requests of clients within the time of a pause, the next ones are read later. Without the
# pause, a client that sends as fast as it can would take the time of a whole core to be refused, and the workers
# need that time.
_MANY_REFUSED = 16
_PAUSE_S = 0.02
_COPIED_BYTES = 1024  # to copy a shorter frame takes less time than to read it where it is
# A worker that has died is started again after at most 4 s, and a small model is loaded in a few seconds.
_RETRY_DURING_OUTAGE_MS = 10_000
RETRY_RESTART_MS = 1000  # a server that stops may be started again


class Intake:
    """Passes requests to the scheduler. observers, tracer: see Broker.

    is_accepting: whether new requests for vectors are accepted. termination_requested: whether a client has asked
    the server to end.
    """

    def __init__(
        self,
        settings: Settings,
        ports: Ports,
        scheduler: Scheduler,
        replies: Replies,
        answers: Answers,
        workers: Workers,
        metrics: BrokerMetrics,
        statistic: Statistic,
        inspection: Inspection,
        sparse_log: SparseLog,
        *,
        observers: Sequence[BrokerObserver],
        tracer: JobTracer | None,
    ) -> None:
        self.is_accepting = True
        self.termination_requested = False
        self._settings = settings
        self._ports = ports
        self._scheduler = scheduler
        self._replies = replies
        self._answers = answers
        self._workers = workers
        self._metrics = metrics
        self._statistic = statistic
        self._inspection = inspection
        self._sparse_log = sparse_log
        self._observers = observers
        self._tracer = tracer
        self._num_refused, self._counts_refused_since = 0, -math.inf

    def read(self, now: float, phase_s: float) -> None:
        """Handle the messages that have arrived; spend at most phase_s on those of gateways, and on the others."""
        for message in self._ports.requests_of_gateways(Budget(phase_s)):
            self._on_request(message, now, is_from_gateway=True)
        if now - self._counts_refused_since > _PAUSE_S:
            self._num_refused, self._counts_refused_since = 0, now
        for message in self._ports.requests_of_clients(now, Budget(phase_s)):
            self._num_refused += not self._on_request(message, now, is_from_gateway=False)
        if self._num_refused >= _MANY_REFUSED:
            self._ports.pause_requests(now + _PAUSE_S)
            self._num_refused = 0

    def _on_request(self, message: list[zmq.Frame], now: float, *, is_from_gateway: bool) -> bool:
        """Handle a message; return whether it is a request that is not refused."""
        frames: Frames = [frame.bytes if len(frame) < _COPIED_BYTES else frame.buffer for frame in message]
        request = held = None
        try:
            if not is_command(frames):  # commands are answered even if there is no room
                held = self._reserve(frames)
            request = request_from_frames(frames)
            if isinstance(request, CommandRequest):
                self._on_command(request, peer_of(message[0]), now)
            else:
                assert held is not None
                if not is_from_gateway and (request.flow is not None or request.flow_share is not None):
                    request = replace(request, flow=None, flow_share=None)  # a client must not choose its share
                if request.trace is None and request.trace_context is not None:
                    request = replace(request, trace=f"-/{request.trace_context.trace_id}")  # for the logs
                if self._on_encode(request, held, now, is_from_gateway=is_from_gateway):
                    held = None  # it belongs to the job now
            return True
        except ServingError as error:
            if request is None:
                self._notify_arrived(None)
            elif self._tracer is not None and isinstance(request, EncodeRequest):
                self._tracer.refused(request, error, now, is_from_gateway=is_from_gateway)
            trace = getattr(request, "trace", None)
            log.debug("refused request trace=%s error=%s", quoted(trace), error, extra={"trace": trace})
            self._refuse(frames, error, now)
        except Exception:  # an unexpected error must fail only this request
            trace = getattr(request, "trace", None)
            log.exception("cannot handle a request trace=%s", quoted(trace), extra={"trace": trace})
            self._refuse(frames, ServingError("internal error"), now)
        finally:
            if held is not None:
                held.release()
        return False

    def _reserve(self, frames: Frames) -> Reservation:
        """Reserve what the parsed request will take. Raises PayloadTooLarge or Overloaded."""
        identity, _ = sender_of(frames) or (b"", b"")
        body = frames[1] if len(frames) == _NUM_REQUEST_FRAMES else b""
        admission = self._scheduler.admission
        max_bytes, max_texts = self._settings.max_message_mb << 20, admission.texts.largest
        try:
            check_length(body, announced_texts(frames), max_bytes=max_bytes, max_texts=max_texts)
        except PayloadTooLarge:
            admission.num_refused["too_large"] += 1
            raise
        flow = flow_of(identity, None, is_unsubscribed=not self._replies.has_subscriber(identity))
        return admission.reserve_body(flow, body)

    def _on_encode(self, request: EncodeRequest, held: Reservation, now: float, *, is_from_gateway: bool) -> bool:
        """Accept a request; return whether it is new and has taken the reservation."""
        if self._scheduler.has_job(request):
            return False
        self._metrics.requests.inc()
        self._metrics.zeromq_requests.inc(not is_from_gateway)
        self._notify_arrived(request)
        self._replies.note_request(request, now)
        # `now` is the same for all requests of a step; intervals between requests need the real time.
        self._statistic.count_texts(request.identity, len(request.texts), time.monotonic())
        if not self.is_accepting:
            raise Unavailable("the server is shutting down", retry_after_ms=RETRY_RESTART_MS)
        if (outage := self.outage) is not None:
            raise outage
        is_unsubscribed = not self._replies.has_subscriber(request.identity)
        job = self._scheduler.submit(request, now, held, is_unsubscribed=is_unsubscribed)
        if self._tracer is not None:
            job.trace_handle = self._tracer.begin(request, now, is_from_gateway=is_from_gateway)
        if job.is_done:
            self._answers.job_done(job, now)
        return True

    @property
    def outage(self) -> Unavailable | None:
        """The error for requests if the server has lost its last worker long ago, else None.

        At the first start, requests wait instead.
        """
        outage_s = self._workers.outage_s
        if outage_s <= self._settings.unavailable_after:
            return None
        return Unavailable(
            f"no worker has been ready for {outage_s:.0f} s", retry_after_ms=_RETRY_DURING_OUTAGE_MS
        )

    def _on_command(self, request: CommandRequest, peer: str, now: float) -> None:
        if request.command is Command.CANCEL:
            job = self._scheduler.cancel_request(request.identity, request.request_id)
            if job is not None:
                self._answers.cancelled(job, now)
            return
        self._metrics.commands.inc()
        self._statistic.count_command(request.identity)
        if request.command is Command.TERMINATION:
            if not (self._settings.allow_remote_termination or is_loopback(peer)):
                raise Unauthorized(
                    f"TERMINATION is accepted from this machine only, not from {peer}; "
                    "start the server with -allow_remote_termination to change this"
                )
            log.info("termination requested peer=%s", peer)
            self.termination_requested = True
            return
        self.reply_to_command(request, now)
        self._replies.note_request(request, now)

    def reply_to_command(self, request: CommandRequest, now: float) -> None:
        """Reply to a command that asks for information."""
        info = self._inspection.info(request, now, is_accepting=self.is_accepting)
        self._replies.post(InfoReply(request.identity, request.request_id, info), now)

    def _refuse(self, frames: Frames, error: ServingError, now: float) -> None:
        """Reply to a bad request with an error, or log the error if there is no sender to reply to."""
        sender = sender_of(frames)
        # A sender without a subscription may be a port scanner. Hold a reply for it only if the message has as
        # many frames as a request.
        if sender is None or not (len(frames) == _NUM_REQUEST_FRAMES or self._replies.has_subscriber(sender[0])):
            self._metrics.malformed.inc()
            self._sparse_log.warning("ignored a message that is not a request: it has %d frames", len(frames))
            return
        self._answers.error(*sender, error, now)

    def _notify_arrived(self, request: EncodeRequest | None) -> None:
        for observer in self._observers:
            observer.request_arrived(request)
