"""Request and error bodies that all dialects share."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def error_body(description: str, kind: str, status: int) -> dict[str, Any]:
    """Return bert-as-service's error body."""
    return {"description": description, "type": kind, "status": status}


class MaxBodySize:
    """Middleware that answers 413 where a route reads a body of more than `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        is_too_large = announced.isdigit() and int(announced) > self._max_bytes
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            if is_too_large:  # raised here, not before: by now the route is known, for the metrics
                raise _TooLarge
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise _TooLarge
            return message

        try:
            await self._app(scope, counted, send)
        except _TooLarge:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        description = f"the body must have at most {self._max_bytes} bytes"
        await JSONResponse(error_body(description, "PayloadTooLarge", 413), 413)(scope, receive, send)


class _TooLarge(Exception):
    pass
