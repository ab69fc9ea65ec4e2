"""Middleware for the requests of all dialects. It is plain ASGI, so it holds no body in memory."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .calls import REQUEST_ID, request_id_of
from .context import HELD
from .dialect import ERROR_CODE
from .http_protocol import ENDED_WITH, LEFT
from .keys import API_KEY
from .metrics import UNKNOWN_ROUTE, GatewayMetrics
from .texts import NOTES
from .usage import ON_COMPUTED


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

        def count_computed(num_texts: int, num_tokens: int) -> None:
            self._metrics.count_computed(_route_of(scope), num_texts, num_tokens)

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        scope[ON_COMPUTED] = count_computed
        self._metrics.num_in_flight += 1
        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.num_in_flight -= 1
            if HELD in scope:
                scope[HELD].release()
            self._count(scope, status, time.perf_counter() - start)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route, ended_with = _route_of(scope), scope.get(ENDED_WITH)
        if ended_with == LEFT:
            self._metrics.callers_left.labels(route).inc()
        elif ended_with is not None:
            self._metrics.refusals.labels(str(ended_with)).inc()
        key_name = getattr(scope.get(API_KEY), "name", None)
        self._metrics.observe(route, ended_with or status, seconds, scope.get(ERROR_CODE), key_name)
        if NOTES in scope:
            self._metrics.count_texts(scope[NOTES])


def _route_of(scope: Scope) -> str:
    # Label with the route, not the path: otherwise any caller could create new series with unknown paths.
    route: str = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
    return route
