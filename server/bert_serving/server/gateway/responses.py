"""A response whose body is made while it is sent."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_GZIP_LEVEL = 1


class PiecesResponse(Response):
    """A response that is sent in pieces. Each piece is made after the one before it was sent, in a thread.

    So a large response does not delay other requests, and a caller that does not read it makes the gateway hold
    only a piece. gzip: compress the pieces. num_bytes: the length of all pieces, if they
    need not be made.
    """

    def __init__(
        self,
        pieces: Iterable[bytes | memoryview],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "application/json",
        *,
        gzip: bool = False,
        num_bytes: int | None = None,
    ) -> None:
        if gzip:
            headers = {**(headers or {}), "content-encoding": "gzip", "vary": "Accept-Encoding"}
        super().__init__(None, status, headers, media_type)
        del self.headers["content-length"]
        if num_bytes is not None:
            self.headers["content-length"] = str(num_bytes)
        self._num_bytes = num_bytes
        self._pieces: Iterator[bytes | memoryview] = _compressed(pieces) if gzip else iter(pieces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. HTTP/1.0 has no pieces of unknown length: there, the body is made as a whole."""
        pieces = self._pieces
        if scope.get("http_version") == "1.0" and self._num_bytes is None:
            body = await asyncio.to_thread(b"".join, pieces)
            self.headers["content-length"] = str(len(body))
            pieces = iter([body])
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while (piece := await self._next(pieces)) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, pieces: Iterator[bytes | memoryview]) -> bytes | memoryview | None:
        if self._num_bytes is not None:  # the pieces are parts of what is in memory
            return next(pieces, None)
        return await asyncio.to_thread(next, pieces, None)


def _compressed(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the pieces in gzip's format."""
    compressor = zlib.compressobj(_GZIP_LEVEL, wbits=31)
    for piece in pieces:
        if compressed := compressor.compress(piece):
            yield compressed
    yield compressor.flush()
