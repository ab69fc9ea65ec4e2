"""Ollama's routes: POST /api/embed, POST /api/embeddings, GET /api/tags."""

from __future__ import annotations

import time

from bert_serving.protocol import InvalidRequest, ServingError
from fastapi import APIRouter, Response

from ..context import RequestContext
from ..dialect import Dialect
from ..errors import Unprocessable
from ..fields import Body, Dimensions, Strings
from ..service import Service
from ..usage import num_chars, num_tokens, usage_headers


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
    OLLAMA.add_routes(router, service, ["/api/embed"], embed, body=EmbedBody)
    OLLAMA.add_routes(router, service, ["/api/embeddings"], old_embed, body=OldEmbedBody)
    OLLAMA.add_routes(router, service, ["/api/tags"], tags)


async def embed(context: RequestContext) -> Response:
    """Return a vector of unit length for each input. Durations are in nanoseconds."""
    start = time.perf_counter_ns()
    body = await context.body(EmbedBody)
    name = body.model or context.service.model_name
    if not body.input:  # Ollama's clients send an empty input to load a model
        return await context.json({"model": name, "embeddings": []})
    truncate = "error" if body.truncate is False else "right"
    rows, reply = await context.service.vectors(
        body.input, normalize=True, dimensions=body.dimensions, truncate=truncate
    )
    content = {
        "model": name,
        "embeddings": list(rows),
        "total_duration": time.perf_counter_ns() - start,
        "load_duration": 0,
        "prompt_eval_count": num_tokens(reply),
    }
    return await context.json(content, headers=usage_headers(reply, num_chars(body.input)))


async def old_embed(context: RequestContext) -> Response:
    """Return the vector of a prompt, not normalized. This is Ollama's older route, from before /api/embed."""
    body = await context.body(OldEmbedBody)
    rows, reply = await context.service.vectors([body.prompt])
    return await context.json({"embedding": rows[0]}, headers=usage_headers(reply, len(body.prompt)))


async def tags(context: RequestContext) -> Response:
    """Return the one model that is served."""
    name = context.service.model_name
    return await context.json({"models": [{"name": name, "model": name, "details": {"family": "bert"}}]})


def _describe_error(error: ServingError) -> tuple[int, object]:
    # Ollama returns 400 even for bodies that other dialects reject with 422.
    status = InvalidRequest.http_status if isinstance(error, Unprocessable) else error.http_status
    return status, {"error": error.message}


OLLAMA = Dialect("Ollama", _describe_error)
