"""A response whose body is made while it is sent."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_GZIP_LEVEL = 1


class PiecesResponse(Response):
    """A JSON response that is sent in pieces. Each piece is made in a thread, after the one before it was sent.

    So a large response does not delay other requests, and a caller that does not read it makes the gateway hold
    only a piece. gzip: compress the pieces.
    """

    media_type = "application/json"

    def __init__(
        self, pieces: Iterator[bytes], status: int, headers: Mapping[str, str] | None = None, *, gzip: bool = False
    ) -> None:
        if gzip:
            headers = {**(headers or {}), "content-encoding": "gzip", "vary": "Accept-Encoding"}
        super().__init__(None, status, headers)
        del self.headers["content-length"]
        self._pieces = _compressed(pieces) if gzip else iter(pieces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. HTTP/1.0 has no pieces: there, the body is sent as a whole."""
        pieces = self._pieces
        if scope.get("http_version") == "1.0":
            body = await asyncio.to_thread(b"".join, pieces)
            self.headers["content-length"] = str(len(body))
            pieces = iter([body])
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces in gzip's format."""
    compressor = zlib.compressobj(_GZIP_LEVEL, wbits=31)
    for piece in pieces:
        if compressed := compressor.compress(piece):
            yield compressed
    yield compressor.flush()
