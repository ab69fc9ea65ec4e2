"""Replies that were given to libzmq and are still in its pipes: their bytes stay reserved until they are sent.

A large frame is sent without a copy, and pyzmq tells when libzmq needs it no longer. A small frame is copied, and
its bytes count as sent. These copies are bounded: a pipe holds at most as many replies as the high-water mark of
the socket allows (see ports.py), and the copies of each reply have less than two times LARGE_FRAME_BYTES.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import zmq
from bert_serving.protocol import Frames

from .account import Reservation
from .ports import send

#: A frame of at least this size is sent without a copy. Below it, a copy takes less time than to watch the frame.
LARGE_FRAME_BYTES = 8192
_LOOKS = 32  # replies that one call of `collect` looks at


class Tracker(Protocol):
    """Tells when libzmq has sent a frame. pyzmq's MessageTracker is one."""

    @property
    def done(self) -> bool:
        """Whether libzmq has sent the frame, or has dropped it because the connection was lost."""


def send_tracked(socket: zmq.Socket[bytes], frames: Frames) -> list[Tracker]:
    """Send a message without waiting; return the trackers of its large frames.

    Raises zmq.Again if libzmq has no room for it. Only the first frame can be refused.
    """
    parts = [
        zmq.Frame(frame, track=True, copy=False) if len(frame) >= LARGE_FRAME_BYTES else frame for frame in frames
    ]
    send(socket, parts)
    return [part.tracker for part in parts if isinstance(part, zmq.Frame)]


class Pipes:
    """Keeps the reservations of replies in libzmq's pipes."""

    def __init__(self) -> None:
        self._replies: deque[tuple[Sequence[Tracker], Reservation]] = deque()

    def __len__(self) -> int:
        return len(self._replies)

    def __repr__(self) -> str:
        return f"<Pipes replies={len(self)}>"

    def add(self, trackers: Sequence[Tracker], reservation: Reservation) -> None:
        """Keep a reservation until libzmq has sent the frames."""
        self._replies.append((trackers, reservation))

    def collect(self) -> None:
        """Release the reservations of the replies that were sent.

        Each call looks at some of the replies, and the next call at the next ones: a client that does not read may
        leave many of them.
        """
        for _ in range(min(_LOOKS, len(self._replies))):
            trackers, reservation = self._replies.popleft()
            if all(tracker.done for tracker in trackers):
                reservation.release()
            else:
                self._replies.append((trackers, reservation))
