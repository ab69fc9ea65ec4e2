"""Replies that wait for their subscriber. Does no I/O.

A PUB socket drops a message if no client has subscribed to the topic of the message. But the first request of a
client often arrives before its subscription: with PUB, 20 of 30 new clients lost their first reply. So a reply is
held here until its topic has a subscriber, and until libzmq has room for the reply. Held replies are limited in
bytes and in age. If a reply is dropped while its client is connected, the client gets an error reply instead, so
that the client does not wait for the dropped reply.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from bert_serving.protocol import Frames

_REPLY_OVERHEAD_BYTES = 1024  # for the Python objects of a reply: the capacity must limit many small replies too


@dataclass(frozen=True, slots=True)
class _Held:
    since: float
    frames: Frames
    num_bytes: int
    is_substitute: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A reply that was dropped, and the reason."""

    topic: bytes
    reason: str


class Outbox:
    """Holds the replies of each topic in order. `now` is a monotonic time in seconds.

    capacity_bytes: limit for all held replies; above it, the oldest are dropped, those without a subscriber first.
    max_age_s: how long a reply is held. substitute: gets the frames of a dropped reply and the reason, and returns
    the error reply that is sent instead.
    """

    def __init__(
        self, *, capacity_bytes: int, max_age_s: float, substitute: Callable[[Frames, str], Frames]
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._max_age_s = max_age_s
        self._substitute = substitute
        self._suffix = b"\0" + secrets.token_bytes(16)
        self._subscribers: Counter[bytes] = Counter()
        # topic -> its replies, oldest first. A topic without replies is removed. The topics are in the order of
        # their first reply.
        self._without_subscriber: dict[bytes, deque[_Held]] = {}
        self._deliverable: dict[bytes, deque[_Held]] = {}
        self.held_bytes = 0

    def __repr__(self) -> str:
        num_held = sum(map(len, [*self._without_subscriber.values(), *self._deliverable.values()]))
        return f"<Outbox subscribers={len(self._subscribers)} held={num_held} bytes={self.held_bytes}>"

    @property
    def has_deliverable(self) -> bool:
        """Whether any held reply has a topic with a subscriber."""
        return bool(self._deliverable)

    @property
    def is_over_capacity(self) -> bool:
        """Whether the held replies exceed the capacity."""
        return self.held_bytes > self._capacity_bytes

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

    def subscribe(self, identity: bytes) -> bytes | None:
        """Count a subscriber; return its topic, or None if the identity is empty: it would match all topics."""
        if not identity:
            return None
        topic = self.topic_of(identity)
        self._subscribers[topic] += 1
        if topic in self._without_subscriber:
            self._deliverable[topic] = self._without_subscriber.pop(topic)
        return topic

    def unsubscribe(self, identity: bytes) -> bool:
        """Remove a subscriber; return whether it was the last subscriber of the identity.

        If it was the last, drop the replies to the identity.
        """
        topic = self.topic_of(identity)
        if topic not in self._subscribers:
            return False
        self._subscribers[topic] -= 1
        if self._subscribers[topic] > 0:
            return False
        del self._subscribers[topic]
        while topic in self._deliverable:
            self._pop(self._deliverable, topic)
        return True

    def has_subscriber(self, identity: bytes) -> bool:
        """Whether a client has subscribed to the identity."""
        return self.topic_of(identity) in self._subscribers

    def holds_unsubscribed(self, identity: bytes) -> bool:
        """Whether replies to the identity are held because no client has subscribed to it."""
        return self.topic_of(identity) in self._without_subscriber

    def post(self, frames: Frames, now: float) -> None:
        """Hold a reply. Its first frame is the identity. The caller must call `deliver` and `trim` afterwards."""
        topic = self.topic_of(bytes(frames[0]))
        held = self._deliverable if topic in self._subscribers else self._without_subscriber
        reply = _held(now, [topic, *frames[1:]])
        held.setdefault(topic, deque()).append(reply)
        self.held_bytes += reply.num_bytes

    def deliver(self, send: Callable[[Frames], bool]) -> None:
        """Send the replies that have a subscriber. If `send` returns False, the topic's replies stay held."""
        for topic in list(self._deliverable):
            while topic in self._deliverable and send(self._deliverable[topic][0].frames):
                self._pop(self._deliverable, topic)

    def expire(self, now: float) -> list[Dropped]:
        """Drop the replies that have waited too long."""
        reason = f"its client did not fetch it within {self._max_age_s:g} s"
        dropped: list[Dropped] = []
        while self._without_subscriber:
            topic = next(iter(self._without_subscriber))
            if now - self._without_subscriber[topic][0].since <= self._max_age_s:
                break  # all topics after this one have waited for less time
            self._pop(self._without_subscriber, topic)
            dropped.append(Dropped(topic, reason))
        for topic, replies in self._deliverable.items():
            num_old = sum(now - r.since > self._max_age_s and not r.is_substitute for r in replies)
            dropped += [Dropped(topic, reason) for _ in range(num_old) if self._replace(topic, reason)]
        return dropped

    def trim(self) -> list[Dropped]:
        """Drop replies until the rest is within the capacity."""
        reason = f"more than {self._capacity_bytes >> 20} MiB of replies waited for their clients"
        dropped: list[Dropped] = []
        while self.is_over_capacity and self._without_subscriber:
            topic = next(iter(self._without_subscriber))
            self._pop(self._without_subscriber, topic)
            dropped.append(Dropped(topic, reason))
        for topic in list(self._deliverable):
            while self.is_over_capacity and self._replace(topic, reason):
                dropped.append(Dropped(topic, reason))
        return dropped

    def _replace(self, topic: bytes, reason: str) -> bool:
        """Replace the oldest reply of a topic by an error reply; return False if none is left to replace."""
        replies = self._deliverable[topic]
        i = next((i for i, reply in enumerate(replies) if not reply.is_substitute), None)
        if i is None:
            return False
        old = replies[i]
        replies[i] = new = _held(old.since, self._substitute(old.frames, reason), is_substitute=True)
        self.held_bytes += new.num_bytes - old.num_bytes
        return True

    def _pop(self, held: dict[bytes, deque[_Held]], topic: bytes) -> None:
        self.held_bytes -= held[topic].popleft().num_bytes
        if not held[topic]:
            del held[topic]


def _held(since: float, frames: Frames, *, is_substitute: bool = False) -> _Held:
    num_bytes = sum(f.nbytes if isinstance(f, memoryview) else len(f) for f in frames)
    return _Held(since, frames, num_bytes + _REPLY_OVERHEAD_BYTES, is_substitute)
