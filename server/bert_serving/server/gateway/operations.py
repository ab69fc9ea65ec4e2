"""Routes for those who run the server: GET /live, /ready, /metrics."""

from __future__ import annotations

import asyncio

from bert_serving.protocol import Command, ServingError
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from .metrics import GatewayMetrics
from .service import STATUS_TIMEOUT_S, Service

PATHS = ("/live", "/ready", "/metrics")


def create_router(service: Service, metrics: GatewayMetrics) -> APIRouter:
    """Return the routes; none of them asks for an API key."""
    router = APIRouter(tags=["operations"])

    @router.get("/live")
    async def live() -> dict[str, str]:
        """Whether this process answers at all."""
        return {"status": "live"}

    @router.get("/ready")
    async def ready() -> Response:
        """Whether every worker has its model loaded, warmed up, and used lately; 503 if not."""
        try:
            status = await service.status()
        except (ServingError, TimeoutError) as exc:
            return JSONResponse({"status": "not ready", "reason": str(exc) or "no answer"}, status_code=503)
        workers = {worker["name"]: worker["state"] for worker in status["workers"]}
        is_ready = bool(status["ready"])
        return JSONResponse(
            {"status": "ready" if is_ready else "not ready", "workers": workers},
            status_code=200 if is_ready else 503,
        )

    @router.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """The counters of the broker and of all gateways in Prometheus' text format."""
        try:
            info = await asyncio.wait_for(service.client.ask(Command.SHOW_METRICS), STATUS_TIMEOUT_S)
            text = str(info["text"])
        except (ServingError, TimeoutError, asyncio.TimeoutError):
            text = ""
        return Response(text + metrics.text(broker_up=bool(text)), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """The documentation for a browser, and a sign of life for anything else."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/docs")
        return JSONResponse({"status": "live"})

    return router
