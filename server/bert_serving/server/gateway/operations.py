"""Routes for operators: GET and HEAD of /live, /ready, /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, NotRequired, TypeAlias

from bert_serving.protocol import Command, ServingError
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from typing_extensions import TypedDict

from .dialect import Dialect
from .errors import DefaultError, default_error
from .metrics import GatewayMetrics
from .openapi import Docs, Operation
from .routes import DirectRoute
from .service import STATUS_TIMEOUT_S, Service

PATHS = ("/live", "/ready", "/metrics")

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class LiveReply(TypedDict):
    status: Literal["live"]


class ReadyReply(TypedDict):
    """The body of /ready, also if the status is 503."""

    status: Literal["ready", "not ready"]
    workers: NotRequired[dict[str, str]]
    reason: NotRequired[str]


OPERATIONS = Dialect(
    "operations", default_error, DefaultError | ReadyReply, "For orchestrators, load balancers and Prometheus."
)


def create_router(service: Service, metrics: GatewayMetrics) -> APIRouter:
    """Return the routes. Only /metrics may require an API key: see Service.protects_metrics."""
    router = APIRouter()

    async def live(_: Request) -> Response:
        """Return 200 as long as this process answers."""
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        """Return 200 if every worker has loaded its model and used it recently, else 503."""
        try:
            status = await service.status()
        except (ServingError, TimeoutError) as exc:
            return JSONResponse({"status": "not ready", "reason": str(exc) or "no answer"}, status_code=503)
        workers = {worker["name"]: worker["state"] for worker in status["workers"]}
        is_ready = status["ready"]
        return JSONResponse(
            {"status": "ready" if is_ready else "not ready", "workers": workers},
            status_code=200 if is_ready else 503,
        )

    async def show_metrics(request: Request) -> Response:
        """Return the metrics of the broker and of all gateway processes in Prometheus' text format."""
        if service.protects_metrics:
            service.keys.check(request)
        try:
            info = await asyncio.wait_for(service.client.ask(Command.SHOW_METRICS), STATUS_TIMEOUT_S)
            text = info["template"] % tuple(info["numbers"])  # the broker has no time for this
        except (ServingError, TimeoutError):
            text = ""
        text += await asyncio.to_thread(metrics.text, broker_up=bool(text))  # it takes some milliseconds
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def add(path: str, handler: Handler, docs: Docs | None = None, *, is_public: bool = True) -> None:
        operation = None if docs is None else Operation(OPERATIONS, [path], handler, None, is_public, docs)
        router.routes.append(
            DirectRoute(
                path, handler, method="GET", name=handler.__name__, dialect=OPERATIONS.tag, operation=operation
            )
        )

    add("/live", live, Docs(reply=LiveReply))
    add("/ready", ready, Docs(reply=ReadyReply))
    add("/metrics", show_metrics, Docs(reply=str, format="text"), is_public=not service.protects_metrics)
    return router
