"""Reads requests. libzmq limits the bytes of a frame, but not the number of frames in a message."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import zmq

from .budget import Budget

#: Numbers of zmq. A plain number is faster than zmq's enum.
POLLIN = int(zmq.POLLIN)
NOBLOCK = int(zmq.NOBLOCK)

_MAX_FRAMES = 8  # a request has four
_STUCK_S = 1.0
_FRAMES_AT_ONCE = 64


class RequestReader:
    """Reads messages from a PULL socket. Of a longer message, only the first _MAX_FRAMES frames are kept.

    The other frames are read and dropped, as many in each step as its budget allows. Meanwhile the messages of
    other clients wait, because ZeroMQ delivers the frames of a message one after another.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._drops = False
        self._drops_since: float | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether frames of one message have been dropped for too long: other clients wait meanwhile."""
        return self._drops_since is not None and time.monotonic() - self._drops_since > _STUCK_S

    def messages(self, budget: Budget) -> Iterator[list[zmq.Frame]]:
        """Yield messages that have arrived, until the budget is spent, so that other sockets do not wait long."""
        while not budget.is_spent:
            if self._drops and not self._drop_rest(budget):
                self._drops_since = self._drops_since or time.monotonic()
                return
            # Reading the events first costs less than the exception that an empty socket would raise.
            if not int(self._socket.get(zmq.EVENTS)) & POLLIN:
                return
            frames = receive_frames(self._socket, _MAX_FRAMES)
            self._drops = frames[-1].more
            yield frames

    def _drop_rest(self, budget: Budget) -> bool:
        """Drop frames until the message or the budget ends; return whether the message has ended."""
        while not budget.is_spent:
            for _ in range(_FRAMES_AT_ONCE):
                if not self._socket.recv(NOBLOCK, copy=False).more:
                    self._drops, self._drops_since = False, None
                    return True
        return False


def receive_frames(socket: zmq.Socket[bytes], max_frames: float = math.inf) -> list[zmq.Frame]:
    """Return the frames of the next message, at most `max_frames` of them. A message must have arrived."""
    frame = socket.recv(NOBLOCK, copy=False)
    frames = [frame]
    while frame.more and len(frames) < max_frames:  # to ask the socket instead of the frame takes twice as long
        frame = socket.recv(NOBLOCK, copy=False)
        frames.append(frame)
    return frames
