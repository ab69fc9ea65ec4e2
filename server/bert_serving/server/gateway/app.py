"""The gateway process: HTTP in front, an AsyncBertClient behind. No model, no batching, no torch.

legacy      POST /encode, GET /status/server, GET /status/client: bert-as-service's
here        GET /live, /ready, /metrics, /docs
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from socket import socket

import uvicorn
from bert_serving.client import AsyncBertClient
from bert_serving.protocol import Command, ServingError
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

from ..metrics import GatewayMetrics
from ..settings import own_version
from . import legacy
from .body import MaxBodySize, error_body

log = logging.getLogger(__name__)

_STATUS_TIMEOUT_S = 5.0
_GRACE_S = 4
_UNKNOWN_ROUTE = "other"


def main(
    *,
    http_socket: socket,
    ready: Connection,
    host: str,
    port: int,
    port_out: int,
    max_body_bytes: int,
    cors: str,
) -> None:
    """Serve HTTP on a listening socket until SIGTERM, or until the server process is gone.

    cors: the origin whose pages may call; *: any.
    """
    client = AsyncBertClient(host, port, port_out, check_length=False)
    app = create_app(client, max_body_bytes=max_body_bytes, cors=cors, on_ready=lambda: ready.send_bytes(b"ready"))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S, server_header=False
    )
    server = uvicorn.Server(config)
    asyncio.run(_serve(server, http_socket))


async def _serve(server: uvicorn.Server, http_socket: socket) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    loop = asyncio.get_running_loop()

    def parent_is_gone() -> None:
        loop.remove_reader(parent.sentinel)
        server.should_exit = True

    loop.add_reader(parent.sentinel, parent_is_gone)
    with suppress(asyncio.CancelledError):  # raised again by uvicorn for the signal that ended it
        await server.serve(sockets=[http_socket])


def create_app(
    client: AsyncBertClient, *, max_body_bytes: int, cors: str = "*", on_ready: Callable[[], None] = lambda: None
) -> FastAPI:
    """Return the HTTP application in front of a client. on_ready: called when it begins to serve."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        on_ready()
        yield
        await client.close()

    app = FastAPI(
        title="bert-embedding-service",
        version=own_version(),
        description="Sentences in, vectors out.",
        lifespan=lifespan,
        redoc_url=None,
    )
    metrics = GatewayMetrics()
    app.add_middleware(MaxBodySize, max_bytes=max_body_bytes)
    app.include_router(legacy.create_router(client))
    _add_operations(app, client, metrics)
    _add_error_handlers(app)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        # The route, not the path: a scanner must not be able to invent label values.
        route = getattr(request.scope.get("route"), "path", _UNKNOWN_ROUTE)
        metrics.requests.labels(route, str(response.status_code)).inc()
        metrics.latency.labels(route).observe(time.perf_counter() - start)
        return response

    app.add_middleware(CORSMiddleware, allow_origins=[cors], allow_methods=["*"], allow_headers=["*"])
    return app


def _add_operations(app: FastAPI, client: AsyncBertClient, metrics: GatewayMetrics) -> None:
    @app.get("/live", tags=["operations"])
    async def live() -> dict[str, str]:
        """Whether this process answers at all."""
        return {"status": "live"}

    @app.get("/ready", tags=["operations"])
    async def ready() -> Response:
        """Whether every worker has its model loaded, warmed up, and used lately; 503 if not."""
        try:
            status = await asyncio.wait_for(client.server_status(), _STATUS_TIMEOUT_S)
        except (ServingError, TimeoutError, asyncio.TimeoutError) as exc:
            return JSONResponse({"status": "not ready", "reason": str(exc) or "no answer"}, status_code=503)
        workers = {worker["name"]: worker["state"] for worker in status["workers"]}
        is_ready = bool(status["ready"])
        return JSONResponse(
            {"status": "ready" if is_ready else "not ready", "workers": workers},
            status_code=200 if is_ready else 503,
        )

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """The counters of broker and gateway in Prometheus' text format."""
        try:
            info = await asyncio.wait_for(client.ask(Command.SHOW_METRICS), _STATUS_TIMEOUT_S)
            text = str(info["text"])
            metrics.broker_up.set(1)
        except (ServingError, TimeoutError, asyncio.TimeoutError):
            text = ""
            metrics.broker_up.set(0)
        return Response(text + metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(_: Request, exc: HTTPException) -> Response:
        return JSONResponse(
            error_body(str(exc.detail), "HTTPException", exc.status_code), exc.status_code, headers=exc.headers
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, exc: Exception) -> Response:
        return JSONResponse(error_body("internal error", type(exc).__name__, 500), 500)
