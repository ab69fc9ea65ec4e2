"""The line of a blocking client: one conversation over one connection, for any number of threads.

It has no thread of its own: whoever waits for a reply receives for everybody, and the others wait for him.
All state is guarded by `_changed`, except the receiving side of the connection: it belongs to who set
`_is_receiving`.

A signal handler may interrupt a call and use the line again in the same thread. Of the call that waits below it
nothing can be had, neither the lock nor the connection: such a request is refused, and `close` leaves it to that
call to drop the connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from bert_serving.protocol import Frames, Reply, Unavailable

from .connection import Connection
from .session import Session

_T = TypeVar("_T")

_POLL_S = 0.2  # how soon a waiting call notices that the client was closed or a probe is due


class Channel:
    """Sends the requests of a session and waits for their replies; opens with the first request.

    Raises Unavailable once it is closed, and for requests that are lost with the connection.
    """

    def __init__(self, session: Session, ip: str, port: int, port_out: int) -> None:
        self._session = session
        self._ip, self._port, self._port_out = ip, port, port_out
        self._changed = threading.Condition(threading.Lock())
        self._inside: set[int] = set()  # the threads that are in one of the calls below
        self._is_receiving = False
        self._connection: Connection | None = None
        self._num_losses = 0
        self.is_closed = False

    def close(self) -> None:
        """Drop the connection. Calls that still wait raise Unavailable."""
        self.is_closed = True
        if threading.get_ident() in self._inside:
            return
        with self._entered():
            self._changed.wait_for(lambda: not self._is_receiving)
            self._changed.notify_all()

    def refuse_reentry(self) -> None:
        """Raise RuntimeError in a signal handler that interrupted a call of this line."""
        if threading.get_ident() in self._inside:
            raise RuntimeError(
                "a signal handler cannot use the client whose call it interrupted, only close it; use another"
            )

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Hold the lock; the last to leave a line that was closed drops its connection."""
        self.refuse_reentry()
        try:
            self._inside.add(threading.get_ident())
            with self._changed:
                try:
                    yield
                finally:
                    if self.is_closed and not self._is_receiving and self._connection is not None:
                        self._connection.close()
                        self._connection = None
        finally:
            self._inside.discard(threading.get_ident())

    def send(self, make: Callable[[float], tuple[int, Frames]], deadline: float) -> int:
        """Send the request that `make` gives, over a connection that is whole; return its id."""
        with self._entered():
            if self.is_closed:
                raise Unavailable("this client is closed")
            connection = self._connect()
            if not self._is_receiving:
                self._receive(0)  # a loss that happened before this request must not be counted against it

        def sent() -> int | None:
            self._tend(connection)
            if not connection.is_connected:
                return None
            request_id, frames = make(time.monotonic())
            if connection.send(frames):
                return request_id
            self._session.forget(request_id)  # the line broke at this instant
            return None

        return self.wait(sent, deadline)

    def reply_to(self, request_id: int, deadline: float) -> Reply:
        """Return the reply to a request, which is forgotten if none comes in time."""
        try:
            return cast(Reply, self.wait(lambda: self._session.take(request_id), deadline))
        except BaseException:
            self._session.forget(request_id)
            raise

    def put_back(self, replies: list[tuple[int, Reply]]) -> None:
        """Make replies that were taken fetchable again."""
        with self._entered():
            for request_id, reply in replies:
                self._session.put_back(request_id, reply)

    def wait(self, done: Callable[[], _T | None], deadline: float) -> _T:
        """Return what `done` returns once that is not None. Raises TimeoutError at the deadline."""
        with self._entered():
            while True:
                if self.is_closed:
                    raise Unavailable("this client is closed")
                if (result := done()) is not None:
                    return result
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._too_late()
                if self._is_receiving or self._connection is None:
                    self._changed.wait(min(left, _POLL_S))
                else:
                    self._receive(min(left, _POLL_S))

    def _receive(self, timeout_s: float) -> None:
        """Receive what comes within the timeout, for everybody. The lock is held, but not while waiting."""
        connection = self._connect()
        self._is_receiving = True
        self._changed.release()
        try:
            connection.wait(timeout_s)
            messages = connection.receive()
        finally:
            self._changed.acquire()
            self._is_receiving = False
            self._changed.notify_all()
        now = time.monotonic()
        for frames in messages:
            self._session.receive(frames, now)
        self._tend(connection)
        probe = self._session.probe(now)
        if probe is not None:
            connection.send(probe)

    def _tend(self, connection: Connection) -> None:
        """Keep the line whole, and fail what was lost with it. The lock is held."""
        connection.tend_sender(time.monotonic())
        if self._num_losses != connection.num_losses:
            self._num_losses = connection.num_losses
            self._session.fail_pending(Unavailable(f"the server at {self._ip}:{self._port} went away"))

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._session.identity, self._ip, self._port, self._port_out)
        return self._connection

    def _too_late(self) -> TimeoutError:
        if self._connection is not None and not self._connection.is_connected:
            return TimeoutError(f"cannot reach the server: {self._connection.trouble}")
        return TimeoutError(
            f"the server at {self._ip}:{self._port} did not answer in time; "
            "is the client's timeout long enough for what was asked?"
        )
