"""One HTTP connection: uvicorn's protocol class, with limits, and with the end of a request whose caller leaves.

The gateway waits for a caller at three moments: for the head of a request, for its body, and while the caller
reads its response. With TLS, it also waits for the handshake; see tls.py. `LimitedConnection.check` bounds each
wait. One task calls it for all connections, once a second, so a request needs no timer of its own.

If all connections are in use, a new one takes the place of another: of the connection that the gateway waits for,
and that has sent nothing for the longest time. A connection keeps its place while its request is being computed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from socket import AF_UNIX
from typing import Any, Literal

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .errors import default_response
from .hang_up import has_hung_up
from .limits import MIN_BYTES_PER_S, ConnectionLimits
from .tls import Tls, TlsHandshake

#: Key in the ASGI scope of a request that was cancelled because of its caller. The value is the HTTP status that
#: the metrics count: LEFT, or the status of the refusal.
ENDED_WITH = "bert_serving.ended_with"
LEFT = 499  # nginx's number for a caller that closed its connection before it got a response

_FRAMING = (b"content-length", b"transfer-encoding")
_UNIX_CLIENT = ("unix", 0)  # in place of the address of a caller on a UNIX socket, which has none
_CHECK_EVERY_S = 1.0
_LINGER_S = 2.0  # a refused caller may still be sending; it reads the response only if the connection stays open
_MAX_LINGERING = 64  # refused connections that stay open, in addition to max_connections
# Requests on one connection that wait for the response to an earlier request. What follows them is not parsed yet.
_MAX_PIPELINED = 16
_HEAD_BYTES_AT_ONCE = 1024  # so that the parser does not find thousands of small requests in one call

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Meter:
    """Measures over periods of `period_s` seconds whether a caller moves enough bytes."""

    period_s: float
    _begun_at: float | None = None
    _begun_bytes: int = 0

    def reset(self) -> None:
        """Begin a new period with the next measurement."""
        self._begun_at = None

    def is_too_slow(self, now: float, num_bytes: int, min_bytes_per_s: float) -> bool:
        """Return whether a period ends now, and the caller moved too few bytes. num_bytes: moved in total."""
        if self._begun_at is None or num_bytes < self._begun_bytes:
            self._begun_at, self._begun_bytes = now, num_bytes
        seconds, moved = now - self._begun_at, num_bytes - self._begun_bytes
        if seconds < self.period_s:
            return False
        self._begun_at, self._begun_bytes = now, num_bytes
        return moved <= seconds * min_bytes_per_s


@dataclass(slots=True)
class ConnectionPool:
    """What the connections of one gateway share.

    on_refusal: called with the status of each message that is refused before it has become a request. slow_paths:
    paths whose bodies may arrive slowly, as long as something arrives in each period. tls: None if callers do not
    use it. waiting: the connections that the gateway waits for, ordered by when it last heard from them.
    """

    limits: ConnectionLimits
    on_refusal: Callable[[int], None] = lambda status: None
    slow_paths: frozenset[str] = frozenset()
    tls: Tls | None = None
    connections: set[LimitedConnection | TlsHandshake] = field(default_factory=set)
    waiting: dict[LimitedConnection | TlsHandshake, None] = field(default_factory=dict)

    def new_connection(self, **kwargs: Any) -> LimitedConnection | TlsHandshake:
        """Return the protocol of a new connection. kwargs: see uvicorn's HttpToolsProtocol."""
        connection = LimitedConnection(self, **kwargs)
        return connection if self.tls is None else TlsHandshake(self, self.tls, connection)

    def reload_certificate(self) -> None:
        """Read the TLS certificate again, if there is one. Open connections keep the one that they have."""
        if self.tls is not None:
            self.tls.reload()

    async def check_forever(self) -> None:
        """Check all connections once a second, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.check(now)

    def admit(self, handshake: TlsHandshake) -> float:
        """Note that a handshake begins; return the seconds that it may take. If there is no room at all, drop it.

        If there is no room for a request, the handshake is done nevertheless: without it, no response can be sent.
        """
        if self.make_room():
            self.waiting[handshake] = None
            return self.limits.head_timeout_s
        if len(self.connections) > self.limits.max_connections + _MAX_LINGERING:
            handshake.drop("too many connections have been refused just now")
        return min(_LINGER_S, self.limits.head_timeout_s)

    def make_room(self) -> bool:
        """If there are too many connections, close the one silent for longest; return whether there is room."""
        if len(self.connections) <= self.limits.max_connections:
            return True
        oldest = next(iter(self.waiting), None)
        if oldest is not None:
            oldest.drop("a new connection needs its place")
        return oldest is not None


class LimitedConnection(HttpToolsProtocol):
    """One connection. Most of its methods have names that asyncio, httptools or uvicorn call."""

    def __init__(self, pool: ConnectionPool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pool = pool
        self._limits = pool.limits
        self._app, self.app = self.app, self._run
        self._running: tuple[asyncio.Task[Any], RequestResponseCycle] | None = None
        self._receives: Literal["nothing", "head", "body"] = "nothing"
        self._head_begun_at = time.monotonic()
        self._head_bytes = 0  # bytes of a head; or in a body, bytes that have arrived since its last byte
        self._num_received = 0
        self._unparsed = b""  # what follows _MAX_PIPELINED requests
        self._repeats_head = False
        self._body_left: int | None = None  # None: the body is chunked, or there is none
        self._body_meter = Meter(self._limits.body_timeout_s)
        self._response_meter = Meter(self._limits.response_timeout_s)
        self._refused_at: float | None = None

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request, in a task that `_end_request` can cancel."""
        task, cycle = asyncio.current_task(), send.__self__  # type: ignore[attr-defined]  # a method of the cycle
        assert task is not None
        if self._is_ending:  # the request was refused before its task began
            cycle.disconnected = True
            return
        self._running = task, cycle
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if ENDED_WITH not in scope:  # the server stops, and there is no time left to send the response
                cycle.disconnected = True
                self.transport.abort()

    # -- events of the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it if there is no room for it."""
        super().connection_made(transport)
        if transport.get_extra_info("socket").family == AF_UNIX:
            self.client = _UNIX_CLIENT
        self._pool.connections.add(self)
        if self._pool.make_room():
            self._note_wait()
        elif len(self._pool.connections) > self._limits.max_connections + _MAX_LINGERING:
            self.drop("too many connections have been refused just now")
        else:
            self._refuse(503, "all connections of this gateway are in use: try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of a caller that has left."""
        self._pool.connections.discard(self)
        self._pool.waiting.pop(self, None)
        super().connection_lost(exc)
        self._end_request(LEFT)

    def data_received(self, data: bytes) -> None:
        """Parse the data. Refuses a head that does not end within `max_head_bytes`.

        The same limit holds for a trailer of a chunked body, and for the extensions of a chunk: the parser keeps
        a header until its end arrives.
        """
        self._num_received += len(data)
        self._parse(self._unparsed + data)
        self._note_wait()

    def _parse(self, data: bytes) -> None:
        self._unparsed = b""
        while data and not self._is_ending:
            room = self._limits.max_head_bytes - self._head_bytes
            if self._receives != "body":
                if len(self.pipeline) >= _MAX_PIPELINED:
                    self._unparsed = data
                    self.flow.pause_reading()
                    return
                room = min(room, _HEAD_BYTES_AT_ONCE)
            elif self._body_left is not None:
                room = min(room, max(1, self._body_left))
            if room <= 0:
                part = "trailer or the chunk header" if self._receives == "body" else "head"
                self._refuse(431, f"the {part} of a request may have at most {self._limits.max_head_bytes} bytes")
                return
            self._head_bytes += min(room, len(data))
            self._feed(data[:room])
            data = data[room:]

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if not self._is_ending and self.scope["method"] != "CONNECT":  # what follows CONNECT is not HTTP
                self._ignore_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Continue after a head that offers another protocol, such as HTTP/2 (as Java's client does) or WebSocket.

        The parser has ended the request with its head, and takes the body for the other protocol. So the parser
        gets a head again that has nothing but the length of the body.
        """
        if framing := self._framing():
            self._repeats_head = True
            self._feed(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
            self._repeats_head = False
        if rest:
            self._feed(rest)

    def _framing(self) -> bytes:
        """Return the headers that say where the body ends; nothing if there is no body."""
        lines = (name + b": " + value + b"\r\n" for name, value in self.headers if name in _FRAMING)
        return b"".join(lines)

    # -- events of the parser --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        if self._repeats_head:
            return
        self._receives = "head"
        self._head_begun_at = time.monotonic()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Keep a part of the path."""
        if not self._repeats_head:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, unless there are too many already."""
        if len(self.headers) <= self._limits.max_headers and not self._repeats_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or refuse it."""
        if self._is_ending or self._repeats_head:
            return
        if len(self.headers) > self._limits.max_headers:
            self._refuse(431, f"a request may have at most {self._limits.max_headers} headers")
        elif len(self.pipeline) > _MAX_PIPELINED + _HEAD_BYTES_AT_ONCE // 16:  # they came behind a chunked body
            self._refuse(429, f"at most {_MAX_PIPELINED} requests may wait on one connection")
        if not self._is_ending:
            self._receives = "body"
            self._head_bytes = 0
            lengths = [int(value) for name, value in self.headers if name == b"content-length"]
            self._body_left = lengths[0] if lengths else None
            self.url = without_prefix(self.url, self.root_path.encode())  # uvicorn adds it again
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        if not self._is_ending:
            self._head_bytes = 0
            if self._body_left is not None:
                self._body_left -= len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the body is complete. Reading goes on: this shows at once that the caller leaves."""
        if self._is_ending:
            return
        if self.parser.should_upgrade() and self.scope["method"] != "CONNECT" and self._framing():
            return  # see _ignore_upgrade
        self._receives = "nothing"
        self._head_bytes = 0
        self._body_meter.reset()
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()
        if self.cycle.response_complete:  # the response did not wait for the body
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Note that the connection is free for another request."""
        self._running = None
        self._head_begun_at = time.monotonic()
        super().on_response_complete()
        if self._unparsed:
            self.loop.call_soon(self.data_received, b"")
        self._note_wait()

    # -- limits ----------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End the connection if its caller is too slow or has left. Called about once a second."""
        if self._refused_at is not None:
            if now - self._refused_at > _LINGER_S:
                self.transport.abort()
        elif self._reads_too_slowly(now):
            self.drop("its response is not read")
        elif self.transport.is_closing() and self.transport.get_write_buffer_size() == 0:
            self._refused_at = now  # with TLS, the caller should confirm the end, but it need not do so
        elif self.flow.read_paused and has_hung_up(self.transport):
            self.drop("its caller has left")
        elif self._waits_for_head and now - self._head_begun_at > self._limits.head_timeout_s:
            self._refuse_slow("head", self._limits.head_timeout_s)
        elif self._sends_too_slowly(now):
            self._refuse_slow("body", self._limits.body_timeout_s)

    def drop(self, reason: str) -> None:
        """Close the connection at once."""
        log.debug("connection dropped peer=%s: %s", self.client, reason)
        self._pool.waiting.pop(self, None)
        self.transport.abort()

    @property
    def _is_ending(self) -> bool:
        return self._refused_at is not None or self.transport.is_closing()

    @property
    def _waits_for_head(self) -> bool:
        """Whether a head has begun, or nothing at all has arrived on this connection.

        While an earlier request of the connection is being computed, its caller may take its time.
        """
        return self.cycle is None or (self._receives == "head" and not self._has_request)

    @property
    def _has_request(self) -> bool:
        """Whether a request waits for its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def _note_wait(self) -> None:
        """Move this connection to the end of those that wait for their caller, or remove it from them."""
        self._pool.waiting.pop(self, None)
        is_computing = self._has_request and self._receives == "nothing"
        if not is_computing and not self._is_ending:
            self._pool.waiting[self] = None

    def _reads_too_slowly(self, now: float) -> bool:
        num_unsent = self.transport.get_write_buffer_size()
        if num_unsent == 0:
            self._response_meter.reset()
            return False
        return self._response_meter.is_too_slow(now, -num_unsent, MIN_BYTES_PER_S)

    def _sends_too_slowly(self, now: float) -> bool:
        if self._receives != "body" or self.flow.read_paused:
            self._body_meter.reset()
            return False
        path = self.scope["path"].removeprefix(self.root_path)
        least = 0 if path in self._pool.slow_paths else MIN_BYTES_PER_S
        return self._body_meter.is_too_slow(now, self._num_received, least)

    # -- refusals --------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP. uvicorn calls this method."""
        if not self._is_ending:
            self._refuse(400, msg)

    def _refuse_slow(self, part: str, timeout_s: float) -> None:
        if self._has_request or (self._receives == "head" and self._num_received):
            self._refuse(408, f"the {part} of the request did not arrive in time: the limit is {timeout_s:g} s")
        else:  # nothing has arrived, or the rest of a body after its response
            self.drop(f"no {part} has arrived")

    def _refuse(self, status: int, description: str) -> None:
        """Respond with an error, and close the connection when the caller had time to read it."""
        log.debug("connection refused peer=%s status=%d: %s", self.client, status, description)
        is_responding = self._has_request and self.cycle.response_started
        is_of_next_request = self._has_request and self._receives != "body"
        self._refused_at = time.monotonic()
        self._pool.waiting.pop(self, None)
        if is_of_next_request or self._running is None:
            self._pool.on_refusal(status)
        self._end_request(LEFT if is_of_next_request else status)
        if is_responding or is_of_next_request:  # this response would become a part of another one
            self.transport.abort()
            return
        if self._has_request or self._receives != "body":  # otherwise the request has got its response already
            self.transport.write(_error_message(status, description))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()  # what arrives now is ignored

    def _end_request(self, status: int) -> None:
        """Cancel the request that is running, if there is one. status: what the metrics count for it."""
        if self._running is None:
            return
        task, cycle = self._running
        cycle.scope.setdefault(ENDED_WITH, status)  # type: ignore[misc]  # a key of our own
        cycle.disconnected = True  # nothing more is sent for this request
        task.cancel()


def without_prefix(target: bytes, prefix: bytes) -> bytes:
    """Return the path and query of a request without the prefix that a proxy has left there, if it has."""
    rest = target.removeprefix(prefix)
    if rest == target or rest[:1] not in (b"", b"/", b"?"):
        return target
    return rest if rest[:1] == b"/" else b"/" + rest


def _error_message(status: int, description: str) -> bytes:
    """Return an HTTP response with an error in bert-as-service's format."""
    phrase = HTTPStatus(status).phrase
    response = default_response(description, phrase.replace(" ", ""), status)
    headers = [*response.raw_headers, (b"connection", b"close")]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    lines = [f"HTTP/1.1 {status} {phrase}".encode(), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
