"""Channel: sends the requests of a blocking client over its connection, for any number of threads.

The channel starts no thread. One of the threads that wait for replies receives the messages for all of them; the
others wait until this thread has received something. The lock in `_changed` guards all state except the receiving
side of the connection, which belongs to the thread that set `_is_receiving`.

A signal handler may interrupt a call and call the client again in the same thread. The interrupted call holds the
lock and the connection, so a second call in the handler would wait without end. Therefore the second call raises
RuntimeError. Only `close` works in the handler: it marks the channel as closed, and the interrupted call closes
the connection.

AsyncChannel does the same for an asyncio client. Methods with the same name have the same meaning in both classes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bert_serving.protocol import Reply, Unavailable

from .address import Address
from .connection import Connection
from .session import MakeRequest, Session

_POLL_S = 0.2  # how soon a waiting call notices that the client was closed or that a probe is due


class Channel:
    """Sends the requests of a session and waits for their replies. The first request connects the channel.

    Deadlines are values of time.monotonic(). All methods that wait raise TimeoutError after the deadline. They
    raise Unavailable if the channel is closed, or if the connection breaks and the request is not sent again.
    """

    def __init__(self, session: Session, address: Address) -> None:
        self.is_closed = False
        self._session = session
        self._address = address
        self._connection: Connection | None = None
        self._changed = threading.Condition(threading.Lock())
        self._is_receiving = False
        self._inside: set[int] = set()  # the ids of the threads that are in a call of this channel

    def close(self) -> None:
        """Close the connection. Calls that wait raise Unavailable."""
        self.is_closed = True
        if threading.get_ident() in self._inside:
            return  # in a signal handler; the interrupted call closes the connection
        with self._entered():
            self._changed.wait_for(lambda: not self._is_receiving)
            self._changed.notify_all()

    def send(self, make: MakeRequest, deadline: float) -> int:
        """Send the request that `make` returns, as soon as the channel is connected. Return the request id."""
        with self._entered():
            connection = self._connect()
            if not self._is_receiving:
                self._receive(0)  # record an earlier loss now, so that it does not fail this request
            while True:
                self._refuse_closed()
                self._maintain(connection)
                if connection.is_connected and self._session.is_subscribed:
                    request_id, frames = make(time.monotonic())
                    if connection.send(frames):
                        return request_id
                    self._session.forget(request_id)  # the connection was lost just now
                self._wait_for_messages(deadline)

    def reply_to(self, request_id: int, deadline: float) -> Reply:
        """Return the reply to a request. If no reply arrives before the deadline, cancel the request."""
        with self._entered():
            try:
                self._refuse_closed()
                while (reply := self._session.take(request_id)) is None:
                    self._wait_for_messages(deadline)
                return reply
            except BaseException:  # also KeyboardInterrupt
                self._cancel(request_id)
                raise

    def next_reply(self, deadline: float) -> tuple[int, Reply] | None:
        """Return the next reply to fetch as (request id, reply), or None if no reply is left to fetch."""
        with self._entered():
            self._refuse_closed()
            while (found := self._session.take_any()) is None and self._session.has_to_fetch:
                self._wait_for_messages(deadline)  # meanwhile another thread may fetch the last reply
            return found

    def put_back(self, replies: list[tuple[int, Reply]]) -> None:
        """Give back replies, so that `next_reply` returns them again."""
        with self._entered():
            for request_id, reply in replies:
                self._session.put_back(request_id, reply)

    def refuse_reentry(self) -> None:
        """Raise RuntimeError in a signal handler that interrupted a call of this channel."""
        if threading.get_ident() in self._inside:
            raise RuntimeError(
                "a signal handler can only close the client whose call it interrupted; use another client there"
            )

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Hold the lock. If the channel is closed, the last thread that leaves closes the connection."""
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

    def _cancel(self, request_id: int) -> None:
        """Forget a request. Ask the server to stop its computation if the request has no reply yet."""
        frames = self._session.cancel(request_id)
        if frames is not None and self._connection is not None and self._connection.is_connected:
            self._connection.send(frames)

    def _connect(self) -> Connection:
        self._refuse_closed()
        if self._connection is None:
            self._connection = Connection(self._session.identity, self._address)
        return self._connection

    def _refuse_closed(self) -> None:
        if self.is_closed:
            raise Unavailable("this client is closed")

    def _wait_for_messages(self, deadline: float) -> None:
        """Return when messages have arrived, or after a short time. Releases the caller's lock while waiting."""
        now = time.monotonic()
        left = deadline - now
        if left <= 0:
            raise self._connect().timeout_error(is_subscribed=self._session.is_subscribed)
        if self._is_receiving:
            self._changed.wait(min(left, _POLL_S))
        else:
            self._receive(min(left, _POLL_S, self._session.next_due_s(now)))
        self._refuse_closed()

    def _receive(self, timeout_s: float) -> None:
        """Receive the messages that come within the timeout. Releases the caller's lock while waiting."""
        connection = self._connect()
        self._is_receiving = True
        self._changed.release()
        try:
            connection.wait(timeout_s)
            messages = connection.receive(time.monotonic())
        finally:
            self._changed.acquire()
            self._is_receiving = False
            self._changed.notify_all()
        now = time.monotonic()
        for frames in messages:
            self._session.receive(frames, now)
        self._maintain(connection)
        probe = self._session.probe(now)
        if probe is not None:
            connection.send(probe)

    def _maintain(self, connection: Connection) -> None:
        """Connect again if necessary, fail lost requests, and send what is due. The caller holds the lock."""
        now = time.monotonic()
        connection.maintain(now)
        if (lost := connection.take_loss()) is not None:
            self._session.connection_lost(lost, now)
        self._session.fail_overdue(now)
        if connection.is_connected and (hello := self._session.hello(now)) is not None:
            connection.send(hello)
        for frames in self._session.due(now):
            connection.send(frames)
