"""GET /page/live: what the server does now, as server-sent events for the page in the browser.

One task asks the broker every two seconds and serves all streams of this process. It runs only while there is a
stream, so it costs nothing if no page is open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import orjson
from bert_serving.protocol import Command, JsonObject, Overloaded, ServingError
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from .calls import flow_of
from .dialect import BERT_AS_SERVICE
from .middleware import FOLLOWS
from .operations import OPERATIONS
from .routes import DirectRoute
from .service import STATUS_TIMEOUT_S, Service

PATH = "/page/live"

_PERIOD_S = 2.0
_MAX_STREAMS = 100  # each holds one connection
_RETRY_AFTER_MS = 10_000
_MAX_UNREAD = 30  # events that wait for a page that reads slowly; it misses later ones
_END = b"event: end\ndata: {}\n\n"  # the page connects again, to another process or to the next server
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LiveHistory:
    """The streams of this process.

    A caller may have as many streams as are free, so one caller alone gets half of them. This is the rule of
    GatewayMemory: one caller cannot take all, and many users behind one proxy still get many.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._streams: dict[asyncio.Queue[bytes | None], str] = {}  # with the name of the caller
        self._polling: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def num_streams(self) -> int:
        """The number of pages that follow this process."""
        return len(self._streams)

    async def events(self, caller: str, may_read: Callable[[], bool] = lambda: True) -> AsyncGenerator[bytes]:
        """Yield events: first one with all points of the last minutes, then events with the newest points.

        An event is the broker's reply to SHOW_HISTORY or SHOW_RECENT. If there is none, it is {"ready": false,
        "reason": ...}. The events end when the process ends, and when `may_read` returns False. caller: its flow.
        """
        if (refusal := self.refusal(caller)) is not None:  # again: others may have come since the request
            yield _event({"ready": False, "reason": refusal})
            return
        mine: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_UNREAD)
        self._streams[mine] = caller
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        try:
            yield _event(await self._ask(Command.SHOW_HISTORY))
            while not self._is_closed and (event := await mine.get()) is not None and may_read():
                yield event
            yield _END
        finally:
            self._streams.pop(mine, None)
            if not self._streams and self._polling is not None:
                self._polling.cancel()
                self._polling = None

    def close(self) -> None:
        """End all streams, so that the process can end."""
        self._is_closed = True
        self._send(None)

    def refusal(self, caller: str) -> str | None:
        """Return why a caller gets no other stream; None: it gets one."""
        num_free = _MAX_STREAMS - len(self._streams)
        num_own = Counter(self._streams.values())[caller]
        if num_free <= 0:
            return f"{_MAX_STREAMS} pages are open, which is the limit"
        if num_own >= num_free:
            return (
                f"{num_own} pages are open for this key or address, which is the limit while {num_free} are free"
            )
        return None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            self._send(_event(await self._ask(Command.SHOW_RECENT)))

    def _send(self, event: bytes | None) -> None:
        for each in self._streams:
            with suppress(asyncio.QueueFull):
                each.put_nowait(event)

    async def _ask(self, command: Command) -> JsonObject:
        try:
            return await asyncio.wait_for(self._service.client.ask(command), STATUS_TIMEOUT_S)
        except (ServingError, TimeoutError) as exc:
            return {"ready": False, "reason": str(exc) or "the server does not answer"}


def create_router(service: Service, live: LiveHistory) -> APIRouter:
    """Return the route of the stream. It requires an API key if the server has keys."""
    router = APIRouter()

    async def follow(request: Request) -> Response:
        """Return the stream."""
        try:
            service.keys.check(request)
        except ServingError as exc:
            return BERT_AS_SERVICE.error_response(exc)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=_HEADERS)
        caller = flow_of(request)
        if (refusal := live.refusal(caller)) is not None:
            return BERT_AS_SERVICE.error_response(Overloaded(refusal, retry_after_ms=_RETRY_AFTER_MS))
        request.scope[FOLLOWS] = True

        def may_read() -> bool:  # the keys may change while the stream lasts
            try:
                service.keys.check(request)
            except ServingError:
                return False
            return True

        return StreamingResponse(live.events(caller, may_read), media_type="text/event-stream", headers=_HEADERS)

    router.routes.append(DirectRoute(PATH, follow, method="GET", name="live", dialect=OPERATIONS.tag))
    return router


def _event(info: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(info) + b"\n\n"
