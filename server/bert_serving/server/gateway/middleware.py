"""Middleware for the requests of all dialects. It is plain ASGI, so it holds no body in memory."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .calls import REQUEST_ID, request_id_of
from .context import HELD
from .dialect import ERROR_CODE
from .http_protocol import ENDED_WITH
from .keys import API_KEY
from .metrics import UNKNOWN_ROUTE, GatewayMetrics
from .texts import NOTES


class CountRequests:
    """Counts requests by route and status, and gives back their memory.

    Adds x-request-id to each response: the caller's id, or a new one.
    """

    def __init__(self, app: ASGIApp, *, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, add its id to the response, and count the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = scope[REQUEST_ID] = request_id_of(scope)
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            if HELD in scope:
                scope[HELD].release()
            # Label with the route, not the path: otherwise any caller could create new series with unknown paths.
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            key_name = getattr(scope.get(API_KEY), "name", None)
            seconds = time.perf_counter() - start
            self._metrics.observe(route, scope.get(ENDED_WITH, status), seconds, scope.get(ERROR_CODE), key_name)
            if NOTES in scope:
                self._metrics.count_texts(scope[NOTES])
