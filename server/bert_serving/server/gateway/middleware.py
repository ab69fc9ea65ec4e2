"""Middleware for the requests of all dialects. It is plain ASGI, so it holds no body in memory."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..logs import RequestIds, note_request
from .calls import REQUEST_ID, TRACE_ID, request_id_of, trace_id_of
from .context import HELD
from .dialect import ERROR_CODE
from .facts import FACTS, RequestFacts
from .http_protocol import LEFT
from .metrics import GatewayMetrics
from .texts import NOTES
from .usage import ON_COMPUTED

#: Under this name, the ASGI scope of a request says that its response lasts as long as the caller wants. Its time
#: is no latency, and it ends only when the caller leaves.
FOLLOWS = "bert_serving.follows"


class CountRequests:
    """Counts requests by route and status, and gives back their memory.

    Adds x-request-id to each response: the caller's id, or a new one. on_ended: called when a request has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: GatewayMetrics,
        on_ended: Callable[[RequestFacts], None] = lambda _: None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._on_ended = on_ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, add its id to the response, and count the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = request_id_of(scope)
        trace_id = scope[TRACE_ID] = trace_id_of(scope)
        note_request(RequestIds(request_id, trace_id))
        facts = scope[FACTS] = RequestFacts(scope)

        def count_computed(num_texts: int, num_tokens: int) -> None:
            facts.count_computed(num_texts, num_tokens)
            self._metrics.count_computed(facts.route, num_texts, num_tokens)

        is_in_flight = True

        def has_ended() -> None:
            nonlocal is_in_flight
            self._metrics.num_in_flight -= is_in_flight
            is_in_flight = False

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                if FOLLOWS in scope:
                    has_ended()
                facts.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        scope[ON_COMPUTED] = count_computed
        self._metrics.num_in_flight += 1
        try:
            await self._app(scope, receive, observed)
        finally:
            has_ended()
            if HELD in scope:
                scope[HELD].release()
            facts.status = facts.ended_with or facts.status
            self._count(facts)
            self._on_ended(facts)

    def _count(self, facts: RequestFacts) -> None:
        scope = facts.scope
        if FOLLOWS in scope:
            self._metrics.count_followed(facts.route)
            return
        if facts.ended_with == LEFT:
            self._metrics.callers_left.labels(facts.route).inc()
        elif facts.ended_with is not None:
            self._metrics.refusals.labels(str(facts.ended_with)).inc()
        self._metrics.observe(facts.route, facts.status, facts.seconds, scope.get(ERROR_CODE), facts.key_name)
        if NOTES in scope:
            self._metrics.count_texts(scope[NOTES])
