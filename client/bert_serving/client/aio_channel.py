"""AsyncChannel: sends the requests of an asyncio client over its connection, for any number of tasks.

The event loop calls `_receive` when a socket has something to read. `_receive` reads all messages and wakes the
tasks whose replies have arrived. All state belongs to the event loop of the first request. Other event loops and
other threads must not use the channel.

Channel does the same for a blocking client. Methods with the same name have the same meaning in both classes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress

from bert_serving.protocol import Reply, Unavailable

from .address import Address
from .connection import Connection
from .session import MakeRequest, Session

_RETRY_S = 0.005  # pause between two attempts to send a request
_PROBE_EVERY_S = 1.0


class AsyncChannel:
    """Sends the requests of a session and waits for their replies. The first request connects the channel.

    Deadlines are values of time.monotonic(). All methods that wait raise TimeoutError after the deadline. They
    raise Unavailable if the channel is closed, or if the connection breaks and the request is not sent again.
    """

    def __init__(self, session: Session, address: Address) -> None:
        self.is_closed = False
        self._session = session
        self._address = address
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._arrivals: dict[int, asyncio.Future[None]] = {}  # request number -> done when the reply is here
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._prober: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Close the connection. Calls that wait raise Unavailable."""
        self.refuse_other_loop()
        self.is_closed = True
        if self._connection is None:
            return
        self._connected.set()  # wakes the calls that wait for a connection; they then raise Unavailable
        loop = asyncio.get_running_loop()
        for descriptor in self._connection.descriptors:
            loop.remove_reader(descriptor)
        if self._timer is not None:
            self._timer.cancel()
        assert self._prober is not None
        self._prober.cancel()
        with suppress(asyncio.CancelledError):
            await self._prober
        self._wake(self._session.fail_pending(Unavailable("this client is closed")))
        self._connection.close()
        self._connection = None

    def abandon(self) -> None:
        """Close the sockets after the event loop has ended. In a forked child, leave them open for the parent."""
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()

    async def send(self, make: MakeRequest, deadline: float) -> int:
        """Send the request that `make` returns, as soon as the channel is connected. Return the request id."""
        connection = self._connect()
        self._receive()  # record an earlier loss of the connection now, so that it does not fail this request
        while True:
            await self._wait_until_connected(connection, deadline)
            request_id, frames = make(time.monotonic())
            if connection.send(frames):
                return request_id
            self._session.forget(request_id)  # the connection was lost just now
            self._receive()
            await asyncio.sleep(_RETRY_S)

    async def reply_to(self, request_id: int, deadline: float) -> Reply:
        """Return the reply to a request. If no reply arrives before the deadline, cancel the request."""
        try:
            self._refuse_closed()
            while (reply := self._session.take(request_id)) is None:
                await self._wait_for_reply(request_id, deadline)
            return reply
        except BaseException:  # also CancelledError
            self._cancel(request_id)
            raise

    def belongs_to_other_loop(self) -> bool:
        """Return whether the channel was connected under another event loop or before a fork."""
        return self._loop is not None and (self._loop, self._pid) != (asyncio.get_running_loop(), os.getpid())

    def refuse_other_loop(self) -> None:
        """Raise RuntimeError if the channel is connected under another event loop that is still running."""
        if self._loop is None or self._connection is None or not self.belongs_to_other_loop():
            return
        if self._pid == os.getpid() and self._loop.is_running():
            raise RuntimeError(
                "this AsyncBertClient belongs to another event loop, which is still running; "
                "create one client for each event loop"
            )

    def _cancel(self, request_id: int) -> None:
        """Forget a request. Ask the server to stop its computation if the request has no reply yet."""
        frames = self._session.cancel(request_id)
        if frames is not None and self._connection is not None and self._connection.is_connected:
            self._connection.send(frames)

    def _connect(self) -> Connection:
        self._refuse_closed()
        if self._connection is None:
            self._connection = Connection(self._session.identity, self._address)
            self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
            for descriptor in self._connection.descriptors:
                self._loop.add_reader(descriptor, self._receive)
            self._prober = self._loop.create_task(self._probe())
        return self._connection

    def _refuse_closed(self) -> None:
        if self.is_closed:
            raise Unavailable("this client is closed")

    async def _wait_until_connected(self, connection: Connection, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._timeout_error(connection)
        if not self._connected.is_set():
            try:
                await asyncio.wait_for(self._connected.wait(), left)
            except TimeoutError:
                raise self._timeout_error(connection) from None
        self._refuse_closed()

    async def _wait_for_reply(self, request_id: int, deadline: float) -> None:
        connection = self._connect()
        arrival = self._arrivals[request_id] = asyncio.get_running_loop().create_future()
        try:
            left = deadline - time.monotonic()
            await asyncio.wait_for(arrival, None if left == float("inf") else max(0.0, left))
        except TimeoutError:
            raise self._timeout_error(connection) from None
        finally:
            del self._arrivals[request_id]

    def _timeout_error(self, connection: Connection) -> TimeoutError:
        return connection.timeout_error(is_subscribed=self._session.is_subscribed)

    def _receive(self) -> None:
        """Read all messages that have arrived, because a ZeroMQ descriptor reports each change only once."""
        connection = self._connection
        if connection is None:
            return
        now = time.monotonic()
        for frames in connection.receive(now):
            request_id = self._session.receive(frames, now)
            if request_id is not None:
                self._wake([request_id])
        self._maintain(connection)

    def _maintain(self, connection: Connection) -> None:
        """Connect again if necessary, fail the requests that were lost, and send what is due."""
        now = time.monotonic()
        connection.maintain(now)
        if (lost := connection.take_loss()) is not None:
            self._wake(self._session.connection_lost(lost, now))
        self._wake(self._session.fail_overdue(now))
        if connection.is_connected and (hello := self._session.hello(now)) is not None:
            connection.send(hello)
        for frames in self._session.due(now):
            connection.send(frames)
        if connection.is_connected and self._session.is_subscribed:
            self._connected.set()
        else:
            self._connected.clear()
        self._call_when_due(now)

    def _call_when_due(self, now: float) -> None:
        """Let the event loop call `_receive` when a refused request must be sent again."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        left = self._session.next_due_s(now)
        self._timer = None if left == float("inf") else self._loop.call_later(left, self._receive)

    def _wake(self, request_ids: Iterable[int]) -> None:
        for request_id in request_ids:
            arrival = self._arrivals.get(request_id)
            if arrival is not None and not arrival.done():
                arrival.set_result(None)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            self._receive()
            probe = self._session.probe(time.monotonic())
            if not self._session.pending:  # if the server did not reply to a probe, all requests have failed
                self._wake(list(self._arrivals))
            if probe is not None and self._connection is not None:
                self._connection.send(probe)
