"""A reply that waits, and the two lists on which it stands: that of its topic, and that of its kind.

From both lists, a reply can be removed in constant time, wherever it stands.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from bert_serving.protocol import Frames
from bert_serving.protocol.encoding import Frame

from .account import Reservation

_REPLY_OVERHEAD_BYTES = 1024  # for the Python objects of a reply: the limits must hold for many small replies too
_MAX_COPIED_BYTES = 1 << 20
_MAX_COPIED_VIEW_BYTES = 8 << 10  # libzmq receives larger frames one by one


@dataclass(frozen=True, slots=True)
class Dropped:
    """A reply that was dropped, and the reason."""

    topic: bytes
    request_id: bytes
    reason: str


class HeldReply:
    """A reply that waits. Whoever drops or sends it releases its reservation.

    frames: the topic is the first frame. reservation: the bytes that are reserved for it; None for a small reply.
    number: gives the order of all replies. shelf, siblings: the two lists on which the reply stands.
    """

    __slots__ = ("frames", "num_bytes", "number", "reservation", "shelf", "siblings", "since")

    def __init__(self, frames: Frames, since: float, reservation: Reservation | None = None) -> None:
        self.frames = [_compact(frame) for frame in frames]
        self.since = since
        self.reservation = reservation
        self.num_bytes = _REPLY_OVERHEAD_BYTES + _bytes_of(frames)
        self.number = 0
        self.shelf: Shelf
        self.siblings: Topic

    @property
    def topic(self) -> bytes:
        """The topic that the reply is published under."""
        return bytes(self.frames[0])

    def dropped(self, reason: str) -> Dropped:
        """Return what to report if the reply is dropped."""
        return Dropped(self.topic, bytes(self.frames[-1]), reason)


class Shelf:
    """Replies in the order of their arrival, with limits for their age and for their bytes."""

    def __init__(self, max_age_s: float, max_bytes: float) -> None:
        self.max_age_s = max_age_s
        self.max_bytes = max_bytes
        self.num_bytes = 0
        # An ordinary dict takes longer and longer to find its first item when items are removed from its front.
        self._replies: OrderedDict[int, HeldReply] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, reply: HeldReply) -> None:
        """Add a reply after the others."""
        reply.shelf = self
        self._replies[reply.number] = reply
        self.num_bytes += reply.num_bytes

    def remove(self, reply: HeldReply) -> None:
        """Remove a reply from any place."""
        del self._replies[reply.number]
        self.num_bytes -= reply.num_bytes

    @property
    def oldest(self) -> HeldReply:
        """The first of the replies. There must be one."""
        return next(iter(self._replies.values()))

    def has_old(self, now: float) -> bool:
        """Whether the oldest reply has waited too long."""
        return bool(self._replies) and now - self.oldest.since > self.max_age_s

    @property
    def is_too_full(self) -> bool:
        """Whether the replies have more bytes than the limit allows."""
        return self.num_bytes > self.max_bytes


class Topic:
    """The held replies of one topic in order.

    small_bytes: bytes of the small ones. blocked_since: when a subscriber first could not receive a reply; None:
    all of them could receive the last one.
    """

    __slots__ = ("blocked_since", "replies", "small_bytes")

    def __init__(self) -> None:
        self.replies: OrderedDict[int, HeldReply] = OrderedDict()
        self.small_bytes = 0
        self.blocked_since: float | None = None

    @property
    def oldest(self) -> HeldReply:
        """The first of the replies. There must be one."""
        return next(iter(self.replies.values()))

    def add(self, reply: HeldReply) -> None:
        """Add a reply after the others."""
        reply.siblings = self
        self.replies[reply.number] = reply
        if reply.reservation is None:
            self.small_bytes += reply.num_bytes

    def remove(self, reply: HeldReply) -> None:
        """Remove a reply from any place."""
        del self.replies[reply.number]
        if reply.reservation is None:
            self.small_bytes -= reply.num_bytes


def _compact(frame: Frame) -> Frame:
    """Return the frame in as much memory as its bytes need.

    orjson 3.13 takes 4 KB for the shortest result. A few rows may be a part of what libzmq has received at once.
    """
    if isinstance(frame, bytes):
        return bytes(memoryview(frame)) if len(frame) <= _MAX_COPIED_BYTES else frame
    return bytes(frame) if frame.nbytes <= _MAX_COPIED_VIEW_BYTES else frame


def _bytes_of(frames: Frames) -> int:
    return sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)
