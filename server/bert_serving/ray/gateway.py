"""The ingress of the application: the server's gateway, as a replica of Ray Serve behind Ray's HTTP proxy."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import cast

from bert_serving.protocol import ServingError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..server.gateway.app import create_app
from ..server.gateway.http_protocol import ENDED_WITH, LEFT
from ..server.gateway.keys import Keyring
from ..server.gateway.known_models import KnownModels
from ..server.gateway.limits import BodyLimits
from ..server.gateway.memory import GatewayMemory
from ..server.gateway.metrics import GatewayMetrics
from ..server.gateway.service import Service, server_status
from ..server.keys import KeySource, unnamed_keys
from ..server.settings import Settings
from ..server.supervisor.launch import body_limits
from .client import ReplicasClient
from .metrics import PublishedMetrics

_EVERY_S = 0.25
_RETRY_S = 1.0


class Gateway:
    """The class of the deployment.

    engine: the handle of the deployment of `Engine`. settings: those of the server.
    """

    def __init__(self, engine: DeploymentHandle, settings: Settings) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bert-serving-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._folder.name
        client = ReplicasClient(engine, settings)
        limits = BodyLimits(**body_limits(settings))
        assert settings.served_model_name is not None
        self._service = Service(
            client,
            settings.served_model_name,
            KnownModels(partial(server_status, client), Path(self._folder.name), client.fetch_tokenizer),
            limits,
            GatewayMemory(limits.held_bytes),
            Keyring(_key_source(settings)),
            settings.protect_metrics,
        )
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, with all routes of the gateway. Ray calls this after the constructor."""
        app = create_app(self._service, cors=self._settings.cors, on_ready=self._start)
        self._metrics = cast("GatewayMetrics", app.state.metrics)
        whole: ASGIApp = CallersThatLeave(app)
        if self._settings.http_trusted_proxies:
            whole = ProxyHeadersMiddleware(whole, self._settings.http_trusted_proxies)  # type: ignore[arg-type, assignment]
        return whole

    def _start(self) -> None:
        published = PublishedMetrics(partial(self._metrics.text, broker_up=True))
        self._tasks = [
            asyncio.create_task(work)
            for work in (self._know_model(), self._show_forever(), published.publish_forever())
        ]

    async def _know_model(self) -> None:
        """Read the model's facts before the first request needs them: the replicas may be ending by then."""
        while not await self._knows_model():
            await asyncio.sleep(_RETRY_S)

    async def _knows_model(self) -> bool:
        try:
            await self._service.model()
        except (ServingError, TimeoutError):  # the replicas are starting
            return False
        return True

    async def _show_forever(self) -> None:
        """Show the state of this process in its metrics, until cancelled."""
        memory = self._service.memory
        self._metrics.set_limits(max_connections=0, held_bytes=memory.capacity)  # Ray's proxy has the connections
        while True:
            due = time.monotonic() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            lag_s = max(0.0, time.monotonic() - due)
            self._metrics.show_state(lag_s=lag_s, num_connections=0, held_bytes=memory.held)


class CallersThatLeave:
    """Notes in the scope of a request that its caller has left, as the server's own HTTP connections do.

    Ray cancels the task of such a request. The scope must say so before the application sees the cancellation.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        work = asyncio.ensure_future(self._app(scope, receive, send))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            scope[ENDED_WITH] = LEFT
            work.cancel()
            await asyncio.wait([work])
            raise


def _key_source(settings: Settings) -> KeySource:
    fixed = unnamed_keys(key.get_secret_value() for key in settings.api_key)
    file = None if settings.api_key_file is None else Path(settings.api_key_file)
    return KeySource(fixed, file, num_gateways=settings.http_workers)
