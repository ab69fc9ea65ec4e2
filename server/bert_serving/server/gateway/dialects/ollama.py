"""Ollama's routes: POST /api/embed and /api/embeddings; and those with which its clients look for a model.

There is only one model, and it answers to any name. So /api/show describes it whatever the name, and /api/pull
says that the model is there.
"""

from __future__ import annotations

import time
from typing import Any, Literal, NotRequired

from bert_serving.protocol import InvalidRequest, ServingError
from fastapi import APIRouter, Response
from pydantic import Field
from typing_extensions import TypedDict

from ...settings import own_version
from ..context import RequestContext
from ..dialect import Dialect
from ..errors import Unprocessable
from ..fields import Body, Dimensions, Strings, TextsBody
from ..openapi import Docs
from ..service import Service
from ..texts import FailedTexts, Names
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


class OllamaEmbeddings(TypedDict):
    """Vectors. Durations are in nanoseconds; a reply to an empty input has none."""

    model: str
    embeddings: list[list[float] | None]
    total_duration: NotRequired[int]
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    errors: NotRequired[FailedTexts]


class OllamaEmbedding(TypedDict):
    embedding: list[float] | None
    errors: NotRequired[FailedTexts]


class OllamaDetails(TypedDict):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(TypedDict):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(TypedDict):
    models: list[OllamaModel]


class OllamaRunningModel(OllamaModel):
    expires_at: str
    size_vram: int


class OllamaRunningModels(TypedDict):
    models: list[OllamaRunningModel]


class OllamaVersion(TypedDict):
    version: str


class OllamaFacts(TypedDict):
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaStatus(TypedDict):
    status: Literal["success"]


class OllamaError(TypedDict):
    error: str


_EMBED = Docs(
    OllamaEmbeddings, {"texts": {"model": "any", "input": ["hello world", "one two three"]}}, needs=["embed"]
)
_OLD_EMBED = Docs(OllamaEmbedding, {"a text": {"model": "any", "prompt": "hello world"}}, needs=["embed"])
_SHOW = Docs(OllamaFacts, {"any model": {"model": "any"}})
_PULL = Docs(OllamaStatus, {"any model": {"model": "any", "stream": False}})


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    OLLAMA.add_routes(router, service, ["/api/embed"], embed, body=EmbedBody, docs=_EMBED)
    OLLAMA.add_routes(router, service, ["/api/embeddings"], old_embed, body=OldEmbedBody, docs=_OLD_EMBED)
    OLLAMA.add_routes(router, service, ["/api/tags"], tags, docs=Docs(OllamaModels))
    OLLAMA.add_routes(router, service, ["/api/ps"], running, docs=Docs(OllamaRunningModels))
    OLLAMA.add_routes(router, service, ["/api/version"], version, docs=Docs(OllamaVersion))
    OLLAMA.add_routes(router, service, ["/api/show"], show, body=NamedBody, docs=_SHOW)
    OLLAMA.add_routes(router, service, ["/api/pull"], pull, body=PullBody, docs=_PULL)


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


OLLAMA = Dialect(
    "Ollama",
    _describe_error,
    OllamaError,
    'Ollama\'s routes for embeddings: `ollama.Client(host="http://HOST:PORT").embed(model="any", input="...")`. '
    "The only model answers to any name.",
)
