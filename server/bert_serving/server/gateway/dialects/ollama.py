"""Ollama's routes: POST /api/embed and /api/embeddings; and those with which its clients look for a model.

There is only one model, and it answers to any name. So /api/show describes it whatever the name, and /api/pull
says that the model is there.
"""

from __future__ import annotations

import time

from bert_serving.protocol import InvalidRequest, ServingError
from fastapi import APIRouter, Response
from pydantic import Field

from ...settings import own_version
from ..context import RequestContext
from ..dialect import Dialect
from ..errors import Unprocessable
from ..fields import Body, Dimensions, Strings, TextsBody
from ..service import Service
from ..texts import Names
from ..usage import num_chars, num_tokens, usage_headers

_FAMILY = "bert"
_LONG_AGO, _NEVER = "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"


class EmbedBody(TextsBody):
    input: Strings
    model: str | None = None
    truncate: bool | None = True
    dimensions: Dimensions = None


class OldEmbedBody(TextsBody):
    prompt: str
    model: str | None = None


class NamedBody(Body):
    model: str | None = None
    name: str | None = Field(None, description="older name of `model`")


class PullBody(NamedBody):
    stream: bool | None = True


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    OLLAMA.add_routes(router, service, ["/api/embed"], embed, body=EmbedBody)
    OLLAMA.add_routes(router, service, ["/api/embeddings"], old_embed, body=OldEmbedBody)
    OLLAMA.add_routes(router, service, ["/api/tags"], tags)
    OLLAMA.add_routes(router, service, ["/api/ps"], running)
    OLLAMA.add_routes(router, service, ["/api/version"], version)
    OLLAMA.add_routes(router, service, ["/api/show"], show, body=NamedBody)
    OLLAMA.add_routes(router, service, ["/api/pull"], pull, body=PullBody)


async def embed(context: RequestContext) -> Response:
    """Return a vector of unit length for each input. Durations are in nanoseconds."""
    start = time.perf_counter_ns()
    body = await context.body(EmbedBody)
    name = body.model or context.service.model_name
    if not body.input:  # Ollama's clients send an empty input to load a model
        return await context.json({"model": name, "embeddings": []})
    truncate = "error" if body.truncate is False else "right"
    rows, reply = await context.service.vectors(
        body.input, Names("input"), normalize=True, dimensions=body.dimensions, truncate=truncate
    )
    notes = context.service.notes
    content = {
        "model": name,
        "embeddings": notes.nulled(list(rows)),
        "total_duration": time.perf_counter_ns() - start,
        "load_duration": 0,
        "prompt_eval_count": num_tokens(reply),
        **notes.fields(),
    }
    return await context.json(content, headers=usage_headers(reply, num_chars(body.input)))


async def old_embed(context: RequestContext) -> Response:
    """Return the vector of a prompt, not normalized. This is Ollama's older route, from before /api/embed."""
    body = await context.body(OldEmbedBody)
    rows, reply = await context.service.vectors([body.prompt], Names(others={0: "prompt"}))
    notes = context.service.notes
    content = {"embedding": notes.nulled(rows)[0], **notes.fields()}
    return await context.json(content, headers=usage_headers(reply, len(body.prompt)))


async def tags(context: RequestContext) -> Response:
    """Return the one model that is served."""
    return await context.json({"models": [await _entry(context)]})


async def running(context: RequestContext) -> Response:
    """Return the one model that is served: it is always loaded."""
    entry = await _entry(context)
    return await context.json({"models": [{**entry, "expires_at": _NEVER, "size_vram": 0}]})


async def version(context: RequestContext) -> Response:
    """Return the version of this server."""
    return await context.json({"version": own_version()})


async def show(context: RequestContext) -> Response:
    """Return facts about the model that is served."""
    await context.body(NamedBody)
    facts = (await context.service.model()).facts
    info = {
        "general.architecture": _FAMILY,
        f"{_FAMILY}.context_length": facts["max_seq_len"],
        f"{_FAMILY}.embedding_length": facts["dimension"],
    }
    content = {"details": await _details(context), "model_info": info, "capabilities": ["embedding"]}
    return await context.json({**content, "modified_at": _LONG_AGO})


async def pull(context: RequestContext) -> Response:
    """Say that the model is there. A stream has one line, because there is nothing to download."""
    await context.body(PullBody)
    return await context.json({"status": "success"})


async def _details(context: RequestContext) -> dict[str, object]:
    facts = (await context.service.model()).facts
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": _FAMILY,
        "families": [_FAMILY],
        "parameter_size": "",
        "quantization_level": facts["dtype"],
    }


async def _entry(context: RequestContext) -> dict[str, object]:
    name = context.service.model_name
    return {
        "name": name,
        "model": name,
        "modified_at": _LONG_AGO,
        "size": 0,
        "digest": "",
        "details": await _details(context),
    }


def _describe_error(error: ServingError) -> tuple[int, object]:
    # Ollama returns 400 even for bodies that other dialects reject with 422.
    status = InvalidRequest.http_status if isinstance(error, Unprocessable) else error.http_status
    return status, {"error": error.message}


OLLAMA = Dialect("Ollama", _describe_error)
