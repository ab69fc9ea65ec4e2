"""Routes for operators: GET and HEAD of /live, /ready, /metrics."""

from __future__ import annotations

import asyncio

from bert_serving.protocol import Command, ServingError
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from .metrics import GatewayMetrics
from .openapi import ERROR_RESPONSES
from .service import STATUS_TIMEOUT_S, Service

PATHS = ("/live", "/ready", "/metrics")


def create_router(service: Service, metrics: GatewayMetrics) -> APIRouter:
    """Return the routes. Only /metrics may require an API key: see Service.protects_metrics."""
    router = APIRouter(tags=["operations"], responses=ERROR_RESPONSES)

    @router.head("/live", include_in_schema=False)
    @router.get("/live")
    async def live() -> dict[str, str]:
        """Return 200 as long as this process answers."""
        return {"status": "live"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> Response:
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

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics(request: Request) -> Response:
        """Return the metrics of the broker and of all gateway processes in Prometheus' text format."""
        if service.protects_metrics:
            service.keys.check(request)
        try:
            info = await asyncio.wait_for(service.client.ask(Command.SHOW_METRICS), STATUS_TIMEOUT_S)
            text = str(info["text"])
        except (ServingError, TimeoutError, asyncio.TimeoutError):
            text = ""
        text += await asyncio.to_thread(metrics.text, broker_up=bool(text))  # it takes some milliseconds
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """Redirect a browser to the documentation; return 200 to any other client."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/docs")
        return JSONResponse({"status": "live"})

    return router
