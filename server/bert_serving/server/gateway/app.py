"""The gateway process: serves HTTP, and sends the texts to the broker with an AsyncBertClient.

It has no model, makes no batches and does not load torch.

Routes come from the files in dialects/ (see `_add_dialects`), from stream.py (POST /encode/stream), from
operations.py (GET /live, /ready, /metrics), and for the page in the browser from page.py and live.py.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import multiprocessing
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket
from typing import Any, Protocol

import uvicorn
from bert_serving.client import Address, AsyncBertClient
from bert_serving.protocol import ServingError
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ..keys import KeySource
from ..signals import RELOAD_CERTIFICATE, RELOAD_KEYS
from ..tls import CertificateSource
from . import live, operations, stream
from .access_log import log_request
from .calls import path_of
from .dialect import BERT_AS_SERVICE
from .dialects import bert_as_service, cohere, infinity, ollama, openai, tei, vertex
from .docs_page import add_docs_page
from .errors import OtherHttpError, default_response
from .facts import RequestFacts
from .heartbeat import start_heartbeat
from .http_protocol import ConnectionPool
from .keys import Keyring
from .known_models import KnownModels
from .limits import BodyLimits, ConnectionLimits
from .live import LiveHistory
from .loop_errors import LoopErrors
from .memory import GatewayMemory
from .metrics import GatewayMetrics
from .middleware import CountRequests
from .openapi import operations_of
from .page import add_page
from .routes import DirectRoute
from .service import Service, server_status
from .tls import Tls
from .vitals import show_forever

#: The value of `cors` that allows only pages of web servers on the caller's own machine.
LOOPBACK = "loopback"

_BACKLOG = 2048
_MAX_SHOWN_PATH = 200
_ACCEPTS_PER_STEP = 128  # a flood of connections must not make one step of the event loop long

_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


class Traces(Protocol):
    """Makes the spans of HTTP requests. See otel/http.py."""

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return an application that traces the requests to another one."""

    def close(self) -> None:
        """Send what waits."""


def main(
    *,
    name: str,
    http_sockets: Sequence[socket],
    heartbeat: Connection,
    requests_endpoint: str,
    replies_endpoint: str,
    connection_limits: Mapping[str, Any],
    body_limits: Mapping[str, int],
    certificate: CertificateSource | None,
    trusted_proxies: str,
    root_path: str,
    cors: str,
    model_name: str,
    tokenizer_dir: str,
    api_keys: KeySource,
    protect_metrics: bool,
    access_log: bool,
    tracing: Mapping[str, str | None] | None,
    drain_timeout_s: float,
) -> None:
    """Serve HTTP on listening sockets until SIGTERM, or until the server process has ended.

    heartbeat: the gateway writes to this pipe when it begins to serve, and every second after that.
    requests_endpoint, replies_endpoint: the broker's private addresses for gateways. connection_limits,
    body_limits: the fields of ConnectionLimits and BodyLimits. certificate: for TLS on TCP sockets; None: no TLS.
    trusted_proxies: addresses whose X-Forwarded-For is believed. root_path: prefix that a proxy puts before the
    paths, whether it strips the prefix or not. cors: the origin whose web pages may send requests; "*" allows
    every origin, and LOOPBACK the pages of web servers on the caller's own machine. tokenizer_dir: see
    KnownModels. api_keys: see Keyring. protect_metrics: whether /metrics requires a key too. access_log: whether
    each request is logged. tracing: the endpoint and the version of otel.http.HttpTraces; None: there are no
    traces. drain_timeout_s: how long requests may continue after SIGTERM. name: of this process,
    in the metrics. For the other arguments, see Service.
    """
    keys = Keyring(api_keys)
    limits = BodyLimits(**body_limits)
    # A refusal goes to the HTTP caller with its Retry-After, so this client does not retry.
    client = AsyncBertClient(address=Address(requests_endpoint, replies_endpoint), check_length=False, retry=False)
    service = Service(
        client,
        model_name,
        KnownModels(partial(server_status, client), Path(tokenizer_dir)),
        limits,
        GatewayMemory(limits.held_bytes),
        keys,
        protect_metrics,
    )
    app = create_app(
        service,
        cors=cors,
        process=name,
        access_log=access_log,
        start_traces=None if tracing is None else partial(_start_traces, process=name, tracing=tracing),
        on_ready=lambda: start_heartbeat(heartbeat.fileno()),
    )
    pool = ConnectionPool(
        ConnectionLimits(**connection_limits).within_open_files(),
        on_refusal=app.state.metrics.count_refusal,
        slow_paths=stream.PATHS,
        tls=None if certificate is None else Tls(certificate),
    )
    # uvicorn warns of each message that is not HTTP. Anybody could fill the log with these lines.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=pool.new_connection,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        backlog=_ACCEPTS_PER_STEP,
        log_config=None,
        access_log=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
        root_path=root_path,
        timeout_keep_alive=pool.limits.keep_alive_s,  # type: ignore[arg-type]  # seconds may have a fraction
        headers=[("Keep-Alive", f"timeout={max(1, int(pool.limits.keep_alive_s) - 1)}")],  # clients close first
        timeout_graceful_shutdown=max(1, math.ceil(drain_timeout_s)),
        server_header=False,
    )
    show_state = partial(show_forever, app.state.metrics, pool, service.memory)
    reloads = {RELOAD_KEYS: keys.reload, RELOAD_CERTIFICATE: pool.reload_certificate}
    server = Server(config, on_stop=app.state.live.close)
    try:
        asyncio.run(_serve(server, http_sockets, reloads, [pool.check_forever, show_state]))
    finally:
        if app.state.traces is not None:
            app.state.traces.close()


class Server(uvicorn.Server):
    """uvicorn's server. In one step of the event loop, it accepts at most _ACCEPTS_PER_STEP connections.

    asyncio takes one number for two limits: of the connections that the system holds until they are accepted, and
    of the connections that are accepted in one step. The first limit is set again here.

    on_stop: called before the server waits for the end of its requests.
    """

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Let requests end, then close their connections."""
        self._on_stop()
        await super().shutdown(sockets)


def _start_traces(on_lost: Callable[[int], None], *, process: str, tracing: Mapping[str, str | None]) -> Traces:
    """Return what makes traces of HTTP requests. Only here, a gateway imports OpenTelemetry."""
    kind = importlib.import_module("bert_serving.otel.http").HttpTraces
    traces: Traces = kind(process=process, on_lost=on_lost, **tracing)
    return traces


async def _serve(
    server: uvicorn.Server,
    http_sockets: Sequence[socket],
    reloads: Mapping[signal.Signals, Callable[[], None]],
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]],
) -> None:
    """Serve until the server stops. reloads: what signals lead to. background: what runs meanwhile."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(LoopErrors())

    def stop() -> None:
        loop.remove_reader(parent.sentinel)
        server.should_exit = True

    for number, reload in reloads.items():
        loop.add_signal_handler(number, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, reloads.keys())  # blocked at the start
    loop.add_reader(parent.sentinel, stop)  # becomes readable when the server process ends
    tasks = [asyncio.create_task(function()) for function in background]
    with suppress(asyncio.CancelledError):  # after SIGINT, uvicorn raises the signal again; this cancels the task
        await server.serve(sockets=list(http_sockets))
    for task in tasks:
        task.cancel()


def create_app(
    service: Service,
    *,
    cors: str = LOOPBACK,
    process: str = "gateway",
    access_log: bool = False,
    start_traces: Callable[[Callable[[int], None]], Traces] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the HTTP application of a service.

    process: name of this process, in metrics. access_log: whether each request is logged. start_traces: returns
    what makes traces of requests; gets a function that counts lost spans. on_ready: called when the application
    begins to serve.
    """
    app = _empty_app(service, on_ready)
    router = APIRouter()
    _add_dialects(router, service)
    stream.add_routes(router, service)
    app.router.routes += router.routes
    dialects = dict.fromkeys([*operations.PATHS, live.PATH], operations.OPERATIONS.tag)
    dialects |= {route.path: route.dialect for route in router.routes if isinstance(route, DirectRoute)}
    metrics = GatewayMetrics(dialects, service.keys.names, process=process)
    app.state.metrics = metrics
    for_operators = operations.create_router(service, metrics)
    app.router.routes += for_operators.routes
    app.state.live = LiveHistory(service)
    app.router.routes += live.create_router(service, app.state.live).routes
    add_page(app)
    add_docs_page(app, service, operations_of(router, for_operators))
    _add_error_handlers(app)
    app.state.traces = None if start_traces is None else start_traces(metrics.lost_spans.inc)
    _add_middleware(app, metrics, cors, app.state.traces, on_ended=log_request if access_log else _ignore)
    return app


def _empty_app(service: Service, on_ready: Callable[[], None]) -> FastAPI:
    """Return an application without routes."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        on_ready()
        yield
        await service.client.close()

    return FastAPI(title="bert-embedding-service", lifespan=lifespan, openapi_url=None)  # see docs_page.py


def _add_dialects(router: APIRouter, service: Service) -> None:
    """Add the routes of every dialect. To remove a dialect, delete its file and every use of its name here.

    Infinity shares /models with OpenAI, and /rerank and /health with TEI: Infinity's functions change the replies
    of these routes.
    """
    bert_as_service.add_routes(router, service)
    openai.add_routes(router, service, extra_model_fields=infinity.model_fields)
    infinity.add_routes(router, service)
    tei.add_routes(
        router,
        service,
        predict_instances=vertex.predict_instances,
        documents_content=infinity.ranking_content,
        documents_reply=infinity.RankingReply,
        extra_health_fields=infinity.health_fields,
    )
    cohere.add_routes(router, service)
    ollama.add_routes(router, service)


def _ignore(_: RequestFacts) -> None:
    """Do nothing when a request has ended."""


def _add_middleware(
    app: FastAPI,
    metrics: GatewayMetrics,
    cors: str,
    traces: Traces | None,
    *,
    on_ended: Callable[[RequestFacts], None],
) -> None:
    """Add the middleware that every request passes through. The middleware added last is the outermost."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=[] if cors == LOOPBACK else [cors],
        allow_origin_regex=_LOOPBACK_ORIGIN if cors == LOOPBACK else None,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
    if traces is not None:
        app.add_middleware(traces.middleware)
    app.add_middleware(CountRequests, metrics=metrics, on_ended=on_ended)


#: The format of errors outside of a dialect's handlers, such as for an unknown path, by the path's first part.
_DIALECTS = {"v1": openai.OPENAI, "openai": openai.OPENAI, "v2": cohere.COHERE, "api": ollama.OLLAMA}


def _add_error_handlers(app: FastAPI) -> None:
    """Give errors outside of a dialect's handlers the format that the clients of the path expect."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, exc: HTTPException) -> Response:
        path = path_of(request.scope)
        dialect = _DIALECTS.get(path.split("/")[1]) if path.startswith("/") else None
        if dialect is None:
            return default_response(str(exc.detail), "HTTPException", exc.status_code, exc.headers)
        error = OtherHttpError(f"{exc.detail}: {request.method} {path[:_MAX_SHOWN_PATH]}", exc.status_code)
        response = dialect.error_response(error)
        response.headers.update(exc.headers or {})
        return response

    @app.exception_handler(ServingError)
    async def serving_error(_: Request, exc: ServingError) -> Response:
        return BERT_AS_SERVICE.error_response(exc)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, exc: Exception) -> Response:
        return default_response("internal error", type(exc).__name__, 500)
