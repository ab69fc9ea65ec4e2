"""One HTTP/1.1 connection for asyncio that costs the machine little, so that a benchmark measures the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import httptools


@dataclass
class Response:
    """A response. The names of headers are in lower case."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class HttpConnection(asyncio.Protocol):
    """Sends one request at a time. `post` raises ConnectionError if the server closes the connection meanwhile."""

    @classmethod
    async def open(cls, port: int) -> HttpConnection:
        """Connect to a port of this machine."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._answer: asyncio.Future[Response] | None = None

    def connection_lost(self, _: Exception | None) -> None:
        """Called by asyncio."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    async def post(self, message: bytes) -> Response:
        """Send the bytes of a request; return the response."""
        self._answer = asyncio.get_running_loop().create_future()
        self._response, self._pieces = Response(), []
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(message)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._response.headers[name.lower()] = value

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._response.status = self._parser.get_status_code()
        self._response.body = b"".join(self._pieces)
        assert self._answer is not None
        self._answer.set_result(self._response)

    _pieces: list[bytes]


def request(path: str, body: bytes, *, accept: str) -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
