"""The part of the broker that uses the XPUB socket: reads subscriptions, and sends replies to their clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import zmq
from bert_serving.protocol import (
    CommandRequest,
    EncodeRequest,
    ErrorReply,
    Reply,
    Unavailable,
    reply_to_frames,
)

from .account import Reservation
from .budget import Budget
from .held_reply import Dropped, HeldReply
from .late_subscribers import LateSubscribers
from .metrics import BrokerMetrics
from .outbox import Outbox
from .pipes import Pipes, send_tracked
from .ports import connection_of, receive_frame
from .sparse_log import SparseLog
from .subscriptions import Subscriptions

_RETRY_MS = (1, 50)  # a pipe that is read is empty after a millisecond; other pipes are tried less and less often
_COLLECT_MS = 100
_LOST = Unavailable("the connection for replies was lost: send the request again", retry_after_ms=100)
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

    max_age_s: how long vectors are held.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], metrics: BrokerMetrics, sparse_log: SparseLog, *, max_age_s: float
    ) -> None:
        self._socket = socket
        self._metrics = metrics
        self._sparse_log = sparse_log
        self._outbox = Outbox(max_age_s=max_age_s, on_dropped=self._note_dropped)
        self._pipes = Pipes()
        self._retry_ms = _RETRY_MS[0]
        self._subscriptions = Subscriptions()
        # Only the reply to a command is sent again. None stands for a request for vectors.
        self._late_subscribers: LateSubscribers[CommandRequest | None] = LateSubscribers()

    def __repr__(self) -> str:
        return f"<Replies {self._outbox!r} {self._pipes!r} {self._subscriptions!r}>"

    @property
    def num_subscribers(self) -> int:
        """The number of identities with at least one subscriber."""
        return self._outbox.num_subscribers

    @property
    def held_bytes(self) -> int:
        """Bytes of the replies that are held."""
        return self._outbox.held_bytes

    @property
    def num_held(self) -> int:
        """The number of replies that are held, and of subscribers."""
        return self._outbox.num_held

    @property
    def are_sent(self) -> bool:
        """Whether all replies to clients that have subscribed were sent."""
        return not self._outbox.has_deliverable

    def poll_ms(self, timeout_ms: int) -> int:
        """Return how long the broker may wait for messages: not long if there is something to try again."""
        if self._outbox.is_behind:
            return 0
        if self._outbox.has_deliverable:
            return min(timeout_ms, self._retry_ms)
        return min(timeout_ms, _COLLECT_MS) if self._pipes else timeout_ms

    def has_subscriber(self, identity: bytes) -> bool:
        """Whether a client has subscribed to the identity."""
        return self._outbox.has_subscriber(identity)

    # -- subscriptions ---------------------------------------------------------------------------------

    def changes(self, now: float, budget: Budget) -> Iterator[Subscribed | Unsubscribed]:
        """Read the socket; yield the accepted subscriptions, and the identities whose last subscriber left."""
        # A client may send messages of any number of frames here. Each frame counts as a message.
        while not budget.is_spent and (frame := receive_frame(self._socket)) is not None:
            kind, identity = frame.bytes[:1], frame.bytes[1:]
            if not identity:  # a subscription to an empty topic would match all topics
                continue
            change: Subscribed | Unsubscribed | None = None
            if kind == b"\x01":
                change = self._subscribe(connection_of(frame), identity, now)
            elif kind == b"\x00":
                change = self._unsubscribe(connection_of(frame), identity, now)
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

    def _unsubscribe(self, connection: int | None, identity: bytes, now: float) -> Unsubscribed | None:
        self._socket.setsockopt(zmq.UNSUBSCRIBE, self._outbox.topic_of(identity))
        if self._subscriptions.remove(connection, identity) and self._outbox.unsubscribe(identity, _LOST, now):
            return Unsubscribed(identity)
        return None

    def note_request(self, request: EncodeRequest | CommandRequest, now: float) -> None:
        """Note a client's first request: if the client subscribes late, the reply may have to be sent again."""
        if request.request_id == _FIRST_REQUEST_ID:
            command = request if isinstance(request, CommandRequest) else None
            self._late_subscribers.note_request(request.identity, command, now)

    # -- replies ---------------------------------------------------------------------------------------

    def post(self, reply: Reply, now: float, reservation: Reservation | None = None) -> None:
        """Hold a reply until `deliver` is called.

        reservation: what is reserved for the vectors of the reply; None: the reply has no vectors. Raises NoRoom.
        """
        self._outbox.post(reply_to_frames(reply), now, reservation)

    def post_lost(self, request: EncodeRequest, now: float) -> None:
        """Hold an error for a request that was cancelled because the connection for its reply was lost.

        The client finds it when it subscribes again. Without the error, the client would wait for ever.
        """
        self._outbox.post_note(reply_to_frames(ErrorReply(request.identity, request.request_id, _LOST)), now)

    def deliver(self, now: float, budget: Budget) -> None:
        """Send the replies whose clients have subscribed and can receive them."""
        self._retry_ms = min(2 * self._retry_ms, _RETRY_MS[1])
        self._outbox.deliver(self._send, now, budget)
        self._pipes.collect()

    def expire(self, now: float, budget: Budget) -> None:
        """Drop the replies that have waited too long."""
        self._outbox.expire(now, budget)

    def _send(self, reply: HeldReply, is_lossy: bool) -> bool:
        """Publish a reply; return False if the pipe of a subscriber is full.

        is_lossy: publish it all the same; then only the subscribers with full pipes do not get it.
        """
        if is_lossy:
            self._socket.xpub_nodrop = 0
        try:
            trackers = send_tracked(self._socket, reply.frames)
        except zmq.Again:
            return False
        finally:
            if is_lossy:
                self._socket.xpub_nodrop = 1
        self._retry_ms = _RETRY_MS[0]
        if reply.reservation is not None:
            if trackers:
                self._pipes.add(trackers, reply.reservation)
            else:
                reply.reservation.release()
        return True

    def _note_dropped(self, dropped: Dropped) -> None:
        self._metrics.dropped_replies.inc()
        # The topic is not logged: whoever knows an identity can listen to its replies.
        self._sparse_log.warning("dropped a reply id=%r reason=%s", dropped.request_id, dropped.reason)
