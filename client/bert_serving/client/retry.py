"""Retry: decides which refused or lost requests are sent again, and when. No sockets, no clock, no threads.

A server that is too busy, or that has no worker for a while, refuses a request with an error that says when to try
again. A connection that is lost gives such an error too. The request is sent again after a random pause (Brooker,
"Exponential Backoff And Jitter", AWS 2015: full jitter), so that clients that were refused together do not come
back together. The pauses grow with each refusal. Encoding has no side effects, so sending a request twice is safe.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from bert_serving.protocol import Frames, Overloaded, ServingError, Unavailable, with_deadline

#: How long a request without a deadline is sent again, in seconds after its first refusal.
RETRY_S = 60.0

_ACCEPTED_S = 5.0  # a server that refuses a request does it at once; after this time, it has accepted the request
_MAX_ACCEPTED = 3  # a request that ends each server must not be sent for ever
_MIN_PAUSE_S = 0.01
_GROWTH = 2.0
_MAX_GROWN_PAUSE_S = 5.0  # growth beyond this would leave a client waiting while the server has room again


@dataclass(slots=True)
class _Request:
    """A request that may be refused.

    deadline: monotonic time; infinity: no limit. gives_up_at: until when it is sent again; without a deadline,
    RETRY_S after the first refusal. num_accepted: how often a server seems to have accepted it; then these RETRY_S
    begin anew. sent_at: when it was last sent again. refused_with: the error, while it waits to be sent again.
    """

    frames: Frames
    deadline: float
    gives_up_at: float = math.inf
    num_refusals: int = 0
    num_accepted: int = 0
    sent_at: float = -math.inf
    refused_with: ServingError | None = None


class Retry:
    """The requests of one client that are sent again if the server refuses them.

    `now` and deadlines are monotonic times in seconds. draw: returns a random number in [0, 1).
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._requests: dict[int, _Request] = {}
        self._waiting: list[tuple[float, int]] = []  # heap of (time to send, request number)

    def keep(self, request_id: int, frames: Frames, deadline: float = math.inf) -> None:
        """Keep the frames of a request until `forget` is called for it."""
        self._requests[request_id] = _Request(frames, deadline)

    def forget(self, request_id: int) -> None:
        """Do not send this request again."""
        self._requests.pop(request_id, None)

    def refuse(self, request_id: int, error: ServingError, now: float) -> bool:
        """Note that the server has refused a request. Return whether the request will be sent again."""
        request = self._requests.get(request_id)
        if request is None or error.retry_after_ms is None or not isinstance(error, Overloaded | Unavailable):
            return False
        if request.refused_with is not None:  # it waits already
            return True
        if now - request.sent_at > _ACCEPTED_S and request.num_accepted < _MAX_ACCEPTED:
            request.num_accepted += 1
            request.num_refusals = 0
            request.gives_up_at = now + RETRY_S if request.deadline == math.inf else request.deadline
        at = now + self._pause_s(error.retry_after_ms / 1000, request.num_refusals)
        if at >= request.gives_up_at:
            return False
        request.num_refusals += 1
        request.refused_with = error
        heapq.heappush(self._waiting, (at, request_id))
        return True

    def due(self, now: float) -> list[Frames]:
        """Return the frames of the requests that must be sent now, with the time that is left to each of them."""
        frames = []
        while self._waiting and self._waiting[0][0] <= now:
            request = self._requests.get(heapq.heappop(self._waiting)[1])
            if request is not None:
                request.refused_with, request.sent_at = None, now
                left_ms = max(1, round((request.gives_up_at - now) * 1000))
                frames.append(with_deadline(request.frames, left_ms))
        return frames

    def overdue(self, now: float) -> dict[int, ServingError]:
        """Return the numbers of the requests whose deadline passed while they waited, with their latest errors."""
        if not self._waiting or self._waiting[0][0] > now:  # each waits for a time before its deadline
            return {}
        waiting = [(number, self._requests.get(number)) for _, number in self._waiting]
        return {
            number: request.refused_with
            for number, request in waiting
            if request is not None and request.refused_with is not None and request.gives_up_at <= now
        }

    def next_s(self, now: float) -> float:
        """Return the seconds until a request is due; infinity if no request waits."""
        return max(0.0, self._waiting[0][0] - now) if self._waiting else float("inf")

    def _pause_s(self, retry_after_s: float, num_refusals: int) -> float:
        """Return a random pause. Its mean is the time that the server named, at first, and grows afterwards."""
        grown_s = max(_MIN_PAUSE_S, retry_after_s) * _GROWTH ** min(num_refusals, 16)
        mean_s = max(retry_after_s, min(grown_s, _MAX_GROWN_PAUSE_S))
        return 2 * mean_s * self._draw()
