"""The gateway process: HTTP in front, an AsyncBertClient behind. No model, no batching, no torch.

legacy      POST /encode, GET /status/server, GET /status/client: bert-as-service's
openai      /v1/embeddings, /v1/models, and Infinity's /classify
tei         /embed, /rerank, /predict, /tokenize ...: text-embeddings-inference's
cohere      /v2/embed, /v2/rerank
ollama      /api/embed
stream      POST /encode/stream: lines in, lines out, without end
operations  /live, /ready, /metrics
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket

import uvicorn
from bert_serving.client import AsyncBertClient
from bert_serving.protocol import ServingError
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from ..settings import own_version
from . import operations, stream
from .dialects import cohere, legacy, ollama, openai, tei
from .metrics import GatewayMetrics
from .middleware import MaxBodySize, Observe
from .service import Service

log = logging.getLogger(__name__)


def main(
    *,
    http_socket: socket,
    ready: Connection,
    host: str,
    port: int,
    port_out: int,
    max_body_bytes: int,
    cors: str,
    model_name: str,
    tokenizer_path: str,
    api_keys: tuple[str, ...],
    drain_timeout_s: float,
) -> None:
    """Serve HTTP on a listening socket until SIGTERM, or until the server process is gone.

    cors: the origin whose pages may call; *: any. drain_timeout_s: how long requests may go on after SIGTERM. The
    others: see Service.
    """
    service = Service(
        AsyncBertClient(host, port, port_out, check_length=False),
        model_name,
        Path(tokenizer_path),
        max_body_bytes,
        api_keys,
    )
    app = create_app(service, cors=cors, on_ready=lambda: ready.send_bytes(b"ready"))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, math.ceil(drain_timeout_s)),
        server_header=False,
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


def create_app(service: Service, *, cors: str = "*", on_ready: Callable[[], None] = lambda: None) -> FastAPI:
    """Return the HTTP application in front of a service. on_ready: called when it begins to serve."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        on_ready()
        yield
        await service.client.close()

    app = FastAPIOffline(  # its documentation page needs no other host
        title="bert-embedding-service",
        version=own_version(),
        description="Sentences in, vectors out.",
        lifespan=lifespan,
        redoc_url=None,
    )
    router = APIRouter()
    for dialect in (legacy, openai, tei, cohere, ollama, stream):
        dialect.add_routes(router, service)
    app.include_router(router)
    metrics = GatewayMetrics([*operations.PATHS, *(route.path for route in router.routes)])  # type: ignore[attr-defined]
    app.include_router(operations.create_router(service, metrics))
    _add_error_handlers(app)
    app.add_middleware(MaxBodySize, max_bytes=service.max_body_bytes, streams=stream.PATHS)
    app.add_middleware(
        CORSMiddleware, allow_origins=[cors], allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    )
    app.add_middleware(Observe, metrics=metrics)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Say in bert-as-service's words what no route has an answer to."""

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, exc: HTTPException) -> Response:
        return legacy.error_response(str(exc.detail), "HTTPException", exc.status_code, exc.headers)

    @app.exception_handler(ServingError)
    async def serving_error(_: Request, exc: ServingError) -> Response:
        return legacy.LEGACY.respond(exc)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, exc: Exception) -> Response:
        return legacy.error_response("internal error", type(exc).__name__, 500)
