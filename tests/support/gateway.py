"""Parts of a gateway for tests that start no server. Their limits are the defaults of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_serving.client import AsyncBertClient
from bert_serving.protocol import Unavailable
from bert_serving.server.gateway.known_models import KnownModels, ServerStatus
from bert_serving.server.gateway.limits import BodyLimits, ConnectionLimits
from bert_serving.server.gateway.memory import GatewayMemory
from bert_serving.server.gateway.service import Service
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.launch import body_limits, connection_limits


def make_service(client: Any = None, **changed: int) -> Service:
    """Return a service whose client is not connected. changed: fields of BodyLimits that are not the default."""
    limits = BodyLimits(**{**body_limits(Settings()), **changed})
    memory = GatewayMemory(limits.held_bytes)

    async def read_status() -> ServerStatus:
        raise Unavailable("there is no server")

    models = KnownModels(read_status, Path("no folder"))
    return Service(client or AsyncBertClient(), "a model", models, limits, memory)


def make_connection_limits(**changed: Any) -> ConnectionLimits:
    """Return limits of connections. changed: fields that differ from the default."""
    return ConnectionLimits(**{**connection_limits(Settings()), **changed})
