"""Replies that wait for their subscriber. Does no I/O.

A PUB socket drops a message if no client has subscribed to the topic of the message. But the first request of a
client often arrives before its subscription: with PUB, 20 of 30 new clients lost their first reply. So a reply is
held here until its topic has a subscriber, and until libzmq has room for the reply.

Every held reply lies on one of five shelves, and each shelf has its own limits:

    vectors     Their bytes are reserved (see account.py), so they always fit. Only their age is limited.
    unclaimed   Vectors for an identity that no client has subscribed to yet: for a few seconds.
    small       Errors and information for a subscriber. A client that does not read them gets no more of them.
    strangers   The same for an identity that no client has subscribed to yet: a few megabytes for a few seconds.
    notes       Errors that tell a client that its request or its reply was dropped: when a reply was too old, or
                when the connection for replies was lost. A note waits for the next subscription.

Each method takes constant time, apart from the loops that have a budget.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

from bert_serving.protocol import ErrorReply, Frames, Overloaded, ServingError, reply_to_frames

from .account import Reservation
from .budget import Budget, Chores
from .held_reply import Dropped, HeldReply, Shelf, Topic

_MAX_SMALL_BYTES = 64 << 20  # for all subscribers together
_MAX_SMALL_BYTES_PER_TOPIC = 4 << 20  # 3,000 errors: more than a client has requests in flight
_MAX_STRANGER_BYTES = 2 << 20  # 1,500 errors: more new clients than a server gets in one second
_STRANGER_S = 10.0  # except on a very slow network, a subscription arrives soon after the first request
_MAX_NOTE_BYTES = 8 << 20  # 6,000 notes
_MAX_NOTES_PER_TOPIC = 512  # more requests than a client of bert-as-service has open; ours need no note
_NOTE_S = 60.0  # a client that has lost its connection connects again within seconds
_BLOCKED_S = 2.0  # how long one subscriber that does not read may delay the replies to others with its identity
_RETRY_DROPPED_MS = 1000
_RETRIES = 64  # blocked topics that one call of `deliver` tries again

#: Sends a reply; returns False if a subscriber cannot receive it now. With the second argument True, sends it to
#: those subscribers that can receive it.
Send: TypeAlias = "Callable[[HeldReply, bool], bool]"


class Outbox:
    """Holds the replies of each topic in order. `now` is a monotonic time in seconds.

    max_age_s: how long vectors are held. on_dropped: is called for each reply that is dropped because of a limit.
    """

    def __init__(self, *, max_age_s: float, on_dropped: Callable[[Dropped], None]) -> None:
        self._on_dropped = on_dropped
        self._suffix = b"\0" + secrets.token_bytes(16)
        self._subscribers: Counter[bytes] = Counter()
        self._vectors = Shelf(max_age_s, float("inf"))
        self._unclaimed = Shelf(min(max_age_s, _STRANGER_S), float("inf"))
        self._small = Shelf(max_age_s, _MAX_SMALL_BYTES)
        self._strangers = Shelf(_STRANGER_S, _MAX_STRANGER_BYTES)
        self._notes = Shelf(_NOTE_S, _MAX_NOTE_BYTES)
        self._shelves = (self._vectors, self._unclaimed, self._small, self._strangers, self._notes)
        self._topics: dict[bytes, Topic] = {}  # a topic without replies is removed
        # Topics with a subscriber and replies. A topic is blocked while a subscriber's pipe is full.
        self._deliverable: OrderedDict[bytes, Topic] = OrderedDict()
        self._blocked: OrderedDict[bytes, Topic] = OrderedDict()
        self._chores = Chores()
        self._num_posted = 0

    def __repr__(self) -> str:
        num_subscribers = len(self._subscribers)
        num_replies = self.num_held - num_subscribers
        return f"<Outbox subscribers={num_subscribers} held={num_replies} bytes={self.held_bytes}>"

    @property
    def held_bytes(self) -> int:
        """Bytes of all held replies."""
        return sum(shelf.num_bytes for shelf in self._shelves)

    @property
    def num_held(self) -> int:
        """The number of held replies and of subscribers."""
        return sum(map(len, self._shelves)) + len(self._subscribers)

    @property
    def has_deliverable(self) -> bool:
        """Whether any held reply has a topic with a subscriber."""
        return bool(self._deliverable or self._blocked)

    @property
    def is_behind(self) -> bool:
        """Whether there is work that needs no event, only time."""
        return bool(self._deliverable or self._chores)

    @property
    def num_subscribers(self) -> int:
        """The number of identities with at least one subscriber."""
        return len(self._subscribers)

    def topic_of(self, identity: bytes) -> bytes:
        """Return the topic of an identity's replies: the identity and a secret suffix.

        A subscriber receives every topic that begins with the topic of its subscription. Without the suffix, a
        client would also get the replies to every identity that begins with the client's identity. For example, a
        client named `embedding-client` got vectors of a client named `embedding-client-2` in 46 of 50 calls.
        Identities of equal length, such as UUIDs, need the suffix too: another client may choose a longer one.
        """
        return identity + self._suffix

    # -- subscribers -----------------------------------------------------------------------------------

    def subscribe(self, identity: bytes) -> bytes | None:
        """Count a subscriber; return its topic, or None if the identity is empty: it would match all topics."""
        if not identity:
            return None
        name = self.topic_of(identity)
        self._subscribers[name] += 1
        if name in self._topics and name not in self._blocked:
            self._deliverable[name] = self._topics[name]
        return name

    def unsubscribe(self, identity: bytes, error: ServingError, now: float) -> bool:
        """Remove a subscriber; return whether it was the last subscriber of the identity.

        If it was the last, drop the replies to the identity, a few in each call of `expire`. Each dropped reply
        leaves a note with the error for the next subscriber.
        """
        name = self.topic_of(identity)
        if name not in self._subscribers:
            return False
        self._subscribers[name] -= 1
        if self._subscribers[name] > 0:
            return False
        del self._subscribers[name]
        self._deliverable.pop(name, None)
        self._blocked.pop(name, None)
        topic = self._topics.pop(name, None)
        if topic is not None:
            self._chores.add(self._drop_all(topic, error, now))
        return True

    def has_subscriber(self, identity: bytes) -> bool:
        """Whether a client has subscribed to the identity."""
        return self.topic_of(identity) in self._subscribers

    def holds_unsubscribed(self, identity: bytes) -> bool:
        """Whether replies to the identity are held because no client has subscribed to it."""
        name = self.topic_of(identity)
        return name in self._topics and name not in self._subscribers

    # -- replies ---------------------------------------------------------------------------------------

    def post(self, frames: Frames, now: float, reservation: Reservation | None = None) -> None:
        """Hold a reply. Its first frame is the identity.

        reservation: what is reserved for the reply; it becomes exactly as large as the reply. None: the reply is
        small. Raises NoRoom if the reservation must grow and cannot.
        """
        frames = [self.topic_of(bytes(frames[0])), *frames[1:]]
        reply = HeldReply(frames, now, reservation)
        if reservation is not None:
            reservation.resize(reply.num_bytes)
            self._hold(reply, self._vectors if reply.topic in self._subscribers else self._unclaimed)
        elif reply.topic not in self._subscribers:
            self._hold(reply, self._strangers)
        elif self._has_room_for(reply):
            self._hold(reply, self._small)
        else:
            self._on_dropped(reply.dropped("its client does not read its replies"))

    def post_note(self, frames: Frames, now: float) -> None:
        """Hold an error for a client whose connection is lost, until the client subscribes again."""
        self._hold_note(HeldReply([self.topic_of(bytes(frames[0])), *frames[1:]], now))

    def deliver(self, send: Send, now: float, budget: Budget) -> None:
        """Send replies that have a subscriber, until none can be sent or the budget is spent."""
        while self._deliverable and not budget.is_spent:
            name, topic = self._deliverable.popitem(last=False)
            self._deliver_topic(name, topic, send, now, budget)
        for _ in range(min(_RETRIES, len(self._blocked))):
            if budget.is_spent:
                return
            name, topic = self._blocked.popitem(last=False)
            self._deliver_topic(name, topic, send, now, budget)

    def expire(self, now: float, budget: Budget) -> None:
        """Drop the replies that have waited too long, until the budget is spent."""
        self._chores.run(budget)
        for shelf in self._shelves:
            while shelf.has_old(now) and not budget.is_spent:
                reply, reason = shelf.oldest, f"its client did not fetch it within {shelf.max_age_s:g} s"
                self._drop(reply, reason)
                # A client that has subscribed waits for the reply. It gets an error when it can receive it.
                if reply.reservation is not None and reply.topic in self._subscribers:
                    error = Overloaded(f"the reply was dropped: {reason}", retry_after_ms=_RETRY_DROPPED_MS)
                    self._leave_note(reply, error, now)

    # -- inside ----------------------------------------------------------------------------------------

    def _has_room_for(self, reply: HeldReply) -> bool:
        topic = self._topics.get(reply.topic)
        return topic is None or topic.small_bytes + reply.num_bytes <= _MAX_SMALL_BYTES_PER_TOPIC

    def _hold(self, reply: HeldReply, shelf: Shelf) -> None:
        self._num_posted += 1
        reply.number = self._num_posted
        name = reply.topic
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic()
        topic.add(reply)
        shelf.add(reply)
        if name in self._subscribers and name not in self._blocked:
            self._deliverable[name] = topic
        while shelf.is_too_full:
            self._drop(shelf.oldest, f"more than {round(shelf.max_bytes) >> 20} MiB of such replies waited")

    def _deliver_topic(self, name: bytes, topic: Topic, send: Send, now: float, budget: Budget) -> None:
        """Send the replies of a topic that is on neither list; put it back on a list if some are left."""
        while topic.replies:
            if budget.is_spent:
                self._deliverable[name] = topic
                return
            reply = topic.oldest
            if not self._try_to_send(reply, topic, send, now):
                self._blocked[name] = topic
                return
            topic.remove(reply)
            reply.shelf.remove(reply)
        del self._topics[name]

    def _try_to_send(self, reply: HeldReply, topic: Topic, send: Send, now: float) -> bool:
        if send(reply, False):
            topic.blocked_since = None
            return True
        if topic.blocked_since is None:
            topic.blocked_since = now
        # A client may subscribe to the identity of another client and read nothing. It must not stop the replies.
        is_shared = self._subscribers[reply.topic] > 1
        return is_shared and now - topic.blocked_since >= _BLOCKED_S and send(reply, True)

    def _drop(self, reply: HeldReply, reason: str) -> None:
        name, topic = reply.topic, reply.siblings
        self._discard(reply)
        if not topic.replies and self._topics.get(name) is topic:
            del self._topics[name]
            self._deliverable.pop(name, None)
            self._blocked.pop(name, None)
        self._on_dropped(reply.dropped(reason))

    def _drop_all(self, topic: Topic, error: ServingError, now: float) -> Iterator[None]:
        """Drop the replies of a topic whose last subscriber has left; each leaves a note."""
        while topic.replies:
            reply = topic.oldest
            self._discard(reply)
            self._leave_note(reply, error, now)
            yield

    def _discard(self, reply: HeldReply) -> None:
        reply.siblings.remove(reply)
        reply.shelf.remove(reply)
        if reply.reservation is not None:
            reply.reservation.release()

    def _leave_note(self, reply: HeldReply, error: ServingError, now: float) -> None:
        frames = reply.frames
        is_error = len(frames) == 4 and len(frames[2]) == 0
        if not is_error:  # an error that was not sent stays as it is
            frames = reply_to_frames(ErrorReply(reply.topic, bytes(frames[-1]), error))
        self._hold_note(HeldReply(frames, now))

    def _hold_note(self, note: HeldReply) -> None:
        topic = self._topics.get(note.topic)
        if (
            topic is not None and len(topic.replies) >= _MAX_NOTES_PER_TOPIC
        ):  # else one client could drop all others'
            self._on_dropped(note.dropped("its client has lost too many requests at once"))
            return
        self._hold(note, self._notes)
