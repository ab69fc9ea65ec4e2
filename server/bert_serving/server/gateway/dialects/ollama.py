"""Ollama's /api/embed."""

from __future__ import annotations

import time
from typing import Any

from bert_serving.protocol import InvalidRequest, ServingError
from fastapi import APIRouter, Response

from ..dialect import Call, Dialect, Unprocessable, usage_headers
from ..fields import Body, Dimensions, Strings, num_chars
from ..service import Service


class EmbedBody(Body):
    input: Strings
    model: str | None = None
    truncate: bool | None = True
    dimensions: Dimensions = None


class OldEmbedBody(Body):
    prompt: str
    model: str | None = None


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    OLLAMA.add(router, service, ["/api/embed"], embed, body=EmbedBody)
    OLLAMA.add(router, service, ["/api/embeddings"], old_embed, body=OldEmbedBody)
    OLLAMA.add(router, service, ["/api/tags"], tags)


async def embed(call: Call) -> Response:
    """Return a vector of unit length for each input. Durations are in nanoseconds."""
    start = time.perf_counter_ns()
    body = await call.body(EmbedBody)
    if not body.input:  # Ollama's clients load a model like this
        return await call.json({"model": body.model or call.service.model_name, "embeddings": []})
    truncate = "error" if body.truncate is False else "right"
    rows, reply = await call.service.vectors(
        body.input, normalize=True, dimensions=body.dimensions, truncate=truncate
    )
    assert reply.usage is not None, "the service asks for it"
    content = {
        "model": body.model or call.service.model_name,
        "embeddings": list(rows),
        "total_duration": time.perf_counter_ns() - start,
        "load_duration": 0,
        "prompt_eval_count": sum(reply.usage.num_tokens),
    }
    return await call.json(content, headers=usage_headers(reply, num_chars(body.input)))


async def old_embed(call: Call) -> Response:
    """Return a vector for a prompt, as Ollama did before /api/embed: not of unit length."""
    body = await call.body(OldEmbedBody)
    rows, reply = await call.service.vectors([body.prompt])
    return await call.json({"embedding": rows[0]}, headers=usage_headers(reply, len(body.prompt)))


async def tags(call: Call) -> Response:
    """Return the one model that is served."""
    name = call.service.model_name
    return await call.json({"models": [{"name": name, "model": name, "details": {"family": "bert"}}]})


def _error(error: ServingError) -> tuple[int, Any]:
    status = InvalidRequest.http_status if isinstance(error, Unprocessable) else error.http_status
    return status, {"error": error.message}


OLLAMA = Dialect("Ollama", _error)
