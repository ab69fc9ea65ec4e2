"""Middleware for the requests of all dialects. It is plain ASGI, so it holds no body in memory."""

from __future__ import annotations

import time
import uuid

from bert_serving.protocol import PayloadTooLarge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .dialect import ERROR_CODE
from .keys import API_KEY
from .metrics import GatewayMetrics

_MAX_ID_BYTES = 128
_UNKNOWN_ROUTE = "other"


class CountRequests:
    """Counts requests by route and status. Adds x-request-id to each response: the caller's id, or a new one."""

    def __init__(self, app: ASGIApp, *, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, add its id to the response, and count the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = _request_id(scope)
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            # Label with the route, not the path: otherwise any caller could create new series with unknown paths.
            route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
            key_name = getattr(scope.get(API_KEY), "name", None)
            seconds = time.perf_counter() - start
            self._metrics.observe(route, status, seconds, scope.get(ERROR_CODE), key_name)


class MaxBodySize:
    """Raises PayloadTooLarge when a route reads a body of more than `max_bytes`, with or without Content-Length.

    streams: paths whose bodies may have any size.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, streams: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a limit for the size of its body."""
        if scope["type"] != "http" or scope["path"] in self._streams:
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        is_too_large = announced.isdigit() and int(announced) > self._max_bytes
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            if is_too_large:  # raised when the route reads the body, so that its dialect formats the error
                raise self._error()
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._error()
            return message

        await self._app(scope, counted, send)

    def _error(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body must have at most {self._max_bytes} bytes")


def _request_id(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    is_valid = 1 <= len(given) <= _MAX_ID_BYTES and given.isascii() and given.decode().isprintable()
    return bytes(given) if is_valid else uuid.uuid4().hex.encode()
