"""The part of the broker that uses the XPUB socket: reads subscriptions, and sends replies to their clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import zmq
from bert_serving.protocol import (
    CommandRequest,
    EncodeRequest,
    ErrorReply,
    Frames,
    Overloaded,
    Reply,
    reply_to_frames,
)

from .late_subscribers import LateSubscribers
from .metrics import BrokerMetrics
from .outbox import Dropped, Outbox
from .ports import connection_of, receive_some
from .sparse_log import SparseLog
from .subscriptions import Subscriptions

_RETRY_MS = 10
_EXPIRE_EVERY_S = 1.0
_FIRST_REQUEST_ID = b"1"  # bert-serving-client numbers its requests from 1


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A client has subscribed. missed: a command whose reply was sent before that and must be sent again."""

    identity: bytes
    missed: CommandRequest | None


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The last subscriber of an identity has left."""

    identity: bytes


class Replies:
    """Holds every reply until its client has subscribed and can receive the reply.

    capacity_bytes, max_age_s: limits for held replies.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        metrics: BrokerMetrics,
        sparse_log: SparseLog,
        *,
        capacity_bytes: int,
        max_age_s: float,
    ) -> None:
        self._socket = socket
        self._metrics = metrics
        self._sparse_log = sparse_log
        self._outbox = Outbox(capacity_bytes=capacity_bytes, max_age_s=max_age_s, substitute=_substitute)
        self._subscriptions = Subscriptions()
        # Only the reply to a command is sent again. None stands for a request for vectors.
        self._late_subscribers: LateSubscribers[CommandRequest | None] = LateSubscribers()
        self._next_expiry = 0.0

    def __repr__(self) -> str:
        return f"<Replies {self._outbox!r} {self._subscriptions!r}>"

    @property
    def num_subscribers(self) -> int:
        """The number of identities with at least one subscriber."""
        return self._outbox.num_subscribers

    @property
    def held_bytes(self) -> int:
        """Bytes of the replies that are held."""
        return self._outbox.held_bytes

    @property
    def are_sent(self) -> bool:
        """Whether all replies to clients that have subscribed were sent."""
        return not self._outbox.has_deliverable

    def poll_ms(self, timeout_ms: int) -> int:
        """Return how long the broker may wait for messages. The time is short if a reply could not be sent yet."""
        return min(timeout_ms, _RETRY_MS) if self._outbox.has_deliverable else timeout_ms

    def has_subscriber(self, identity: bytes) -> bool:
        """Whether a client has subscribed to the identity."""
        return self._outbox.has_subscriber(identity)

    # -- subscriptions ---------------------------------------------------------------------------------

    def changes(self, now: float) -> Iterator[Subscribed | Unsubscribed]:
        """Read the socket; yield the accepted subscriptions, and the identities whose last subscriber left."""
        for message in receive_some(self._socket):
            kind, identity = message[0].bytes[:1], message[0].bytes[1:]
            if not identity:  # a subscription to an empty topic would match all topics
                continue
            change: Subscribed | Unsubscribed | None = None
            if kind == b"\x01":
                change = self._subscribe(connection_of(message[0]), identity, now)
            elif kind == b"\x00":
                change = self._unsubscribe(connection_of(message[0]), identity)
            if change is not None:
                yield change

    def _subscribe(self, connection: int | None, identity: bytes, now: float) -> Subscribed | None:
        had_refused = self._subscriptions.has_refused(connection)
        if not self._subscriptions.add(connection, identity):
            if not had_refused and self._subscriptions.has_refused(connection):
                self._sparse_log.warning("ignored a subscription: its connection has too many subscriptions")
            return None
        missed = self._late_subscribers.subscribe(identity, now)
        is_held = self._outbox.holds_unsubscribed(identity)
        topic = self._outbox.subscribe(identity)
        assert topic is not None
        self._socket.setsockopt(zmq.SUBSCRIBE, topic)
        # If the reply is still held, it is sent now. If not, it was sent to other clients with this identity, and
        # this client missed it.
        return Subscribed(identity, missed[0] if missed and not is_held else None)

    def _unsubscribe(self, connection: int | None, identity: bytes) -> Unsubscribed | None:
        self._socket.setsockopt(zmq.UNSUBSCRIBE, self._outbox.topic_of(identity))
        if self._subscriptions.remove(connection, identity) and self._outbox.unsubscribe(identity):
            return Unsubscribed(identity)
        return None

    def note_request(self, request: EncodeRequest | CommandRequest, now: float) -> None:
        """Note a client's first request: if the client subscribes late, the reply may have to be sent again."""
        if request.request_id == _FIRST_REQUEST_ID:
            command = request if isinstance(request, CommandRequest) else None
            self._late_subscribers.note_request(request.identity, command, now)

    # -- replies ---------------------------------------------------------------------------------------

    def post(self, reply: Reply, now: float) -> None:
        """Hold a reply until `deliver` is called. If too many bytes are held, send or drop some replies now."""
        self._outbox.post(reply_to_frames(reply), now)
        if self._outbox.is_over_capacity:
            self._outbox.deliver(self._send)
            self._note_dropped(self._outbox.trim())

    def deliver(self) -> None:
        """Send every reply whose client has subscribed and can receive the reply."""
        self._outbox.deliver(self._send)

    def expire(self, now: float) -> None:
        """Drop the replies that have waited too long. Checks at most once a second."""
        if now >= self._next_expiry:
            self._next_expiry = now + _EXPIRE_EVERY_S
            self._note_dropped(self._outbox.expire(now))

    def _send(self, frames: Frames) -> bool:
        """Publish a reply; return False if the pipe of a subscriber is full."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def _note_dropped(self, dropped: list[Dropped]) -> None:
        for reply in dropped:
            self._metrics.dropped_replies.inc()
            self._sparse_log.warning("dropped a reply topic=%r reason=%s", reply.topic, reply.reason)


def _substitute(frames: Frames, reason: str) -> Frames:
    """Return the error reply that is sent instead of a dropped reply."""
    error = Overloaded(f"the reply was dropped: {reason}")
    return reply_to_frames(ErrorReply(bytes(frames[0]), bytes(frames[-1]), error))
