"""Replies waiting for their subscriber. Decides, does no I/O.

A PUB socket drops a message that nobody has subscribed to yet, and a client's request is often faster
than its subscription (of 30 fresh clients, 20 lost their first reply that way). So a reply is held here
until its topic has a subscriber whose pipe has room. What waits is bounded by bytes and by age.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from bert_serving.protocol import Frames

# A SUB socket hears every topic that begins with its subscription. An identity of this many bytes
# cannot be guessed; a shorter one may be the beginning of somebody's, so it gets a topic of its own.
_FULL_IDENTITY_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Held:
    since: float
    frames: Frames
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A reply that was given up, and why."""

    topic: bytes
    reason: str


class Outbox:
    """Holds the replies of each topic in order. `now` is a monotonic time in seconds.

    capacity_bytes: what may wait altogether; beyond it the oldest replies are given up, those first that
    nobody is there to take.
    max_age_s: how long a reply waits.
    """

    def __init__(self, *, capacity_bytes: int, max_age_s: float) -> None:
        self._capacity_bytes = capacity_bytes
        self._max_age_s = max_age_s
        self._suffix = b"\0" + secrets.token_bytes(16)
        self._subscribers: Counter[bytes] = Counter()
        self._held: dict[bytes, deque[_Held]] = {}  # topic -> its replies, oldest first; never empty
        self._deliverable: dict[bytes, None] = {}  # topics with a reply and a subscriber, in order of arrival
        self.held_bytes = 0

    def __repr__(self) -> str:
        num_held = sum(map(len, self._held.values()))
        return f"<Outbox subscribers={len(self._subscribers)} held={num_held} bytes={self.held_bytes}>"

    @property
    def has_deliverable(self) -> bool:
        """Whether a reply waits although its subscriber is there."""
        return bool(self._deliverable)

    @property
    def num_subscribers(self) -> int:
        """Identities with at least one subscriber."""
        return len(self._subscribers)

    def topic_of(self, identity: bytes) -> bytes:
        """Return the topic on which an identity is answered: itself, or if it is short, it and a secret."""
        return identity if len(identity) >= _FULL_IDENTITY_BYTES else identity + self._suffix

    def subscribe(self, identity: bytes) -> bytes | None:
        """Count a subscriber; return the topic that it may hear, or None: an empty one would hear all."""
        if not identity:
            return None
        topic = self.topic_of(identity)
        self._subscribers[topic] += 1
        if topic in self._held:
            self._deliverable[topic] = None
        return topic

    def unsubscribe(self, identity: bytes) -> bool:
        """Discount a subscriber; return whether it was the identity's last, whose replies are dropped."""
        topic = self.topic_of(identity)
        if topic not in self._subscribers:
            return False
        self._subscribers[topic] -= 1
        if self._subscribers[topic] > 0:
            return False
        del self._subscribers[topic]
        while topic in self._held:
            self._pop(topic)
        return True

    def has_subscriber(self, identity: bytes) -> bool:
        return self.topic_of(identity) in self._subscribers

    def post(self, frames: Frames, now: float) -> list[Dropped]:
        """Queue a reply, whose first frame is the identity; return what had to be given up for it."""
        topic = self.topic_of(bytes(frames[0]))
        num_bytes = sum(f.nbytes if isinstance(f, memoryview) else len(f) for f in frames)
        self._held.setdefault(topic, deque()).append(_Held(now, [topic, *frames[1:]], num_bytes))
        self.held_bytes += num_bytes
        if topic in self._subscribers:
            self._deliverable[topic] = None
        return self._trim()

    def deliver(self, send: Callable[[Frames], bool]) -> None:
        """Hand over what can go. `send` returns False where the subscriber's pipe is full: that topic waits."""
        for topic in list(self._deliverable):
            while topic in self._held and send(self._held[topic][0].frames):
                self._pop(topic)

    def expire(self, now: float) -> list[Dropped]:
        """Give up the replies that have waited too long."""
        dropped = []
        for topic, replies in list(self._held.items()):
            while replies and now - replies[0].since > self._max_age_s:
                self._pop(topic)
                dropped.append(Dropped(topic, f"not fetched within {self._max_age_s:g} s"))
        return dropped

    def _trim(self) -> list[Dropped]:
        dropped = []
        while self.held_bytes > self._capacity_bytes:
            topic = min(self._held, key=lambda t: (t in self._deliverable, self._held[t][0].since))
            if len(self._held) == len(self._held[topic]) == 1:
                break  # one reply alone may be larger than the bound: it is about to be sent
            self._pop(topic)
            dropped.append(Dropped(topic, f"more than {self._capacity_bytes >> 20} MiB waited to be fetched"))
        return dropped

    def _pop(self, topic: bytes) -> None:
        replies = self._held[topic]
        self.held_bytes -= replies.popleft().num_bytes
        if not replies:
            del self._held[topic]
            self._deliverable.pop(topic, None)
