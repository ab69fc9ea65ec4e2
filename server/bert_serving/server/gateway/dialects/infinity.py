"""Infinity's POST /classify, and what Infinity's clients expect from routes that belong to OpenAI and TEI.

app.py passes these additions to the `add_routes` of OpenAI and TEI.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal, NotRequired

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from ..classify import LabelScore, labelled
from ..context import RequestContext
from ..dialect import Dialect
from ..fields import Strings, TextsBody
from ..openai_format import OpenAIError, TokenUsage, describe_error, list_object, result_object
from ..openapi import Docs
from ..rerank import Ranking, RerankBody, relevance_results
from ..service import Service
from ..texts import FailedTexts, Names
from ..usage import num_chars, usage_headers

INFINITY = Dialect(
    "Infinity",
    describe_error,
    OpenAIError,
    "Infinity's routes, for its clients at `http://HOST:PORT`: /classify, and /embeddings, /rerank, /models and "
    "/health, which it shares with the sections of OpenAI and Text Embeddings Inference.",
)

#: Infinity's names for what each kind of model can do.
_CAPABILITIES = {
    "embedding": ["embed"],
    "splade": ["embed_sparse"],
    "classifier": ["classify", "embed"],
    "reranker": ["rerank"],
}


class ClassifyBody(TextsBody):
    input: Strings
    model: object = None
    raw_scores: bool | None = False


class _Result(TypedDict):
    model: str
    usage: TokenUsage
    id: str
    created: int


class Classification(_Result):
    object: Literal["classify"]
    data: list[list[LabelScore] | None]
    truncated: NotRequired[list[int]]
    errors: NotRequired[FailedTexts]


class RankedDocument(TypedDict):
    index: int
    relevance_score: float | None
    document: NotRequired[str]


class RankingReply(_Result):
    """The reply to a body of /rerank that has "documents"."""

    object: Literal["rerank"]
    results: list[RankedDocument]
    errors: NotRequired[FailedTexts]


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    docs = Docs(Classification, {"texts": {"input": ["hello world", "one two three"]}}, needs=["classify"])
    INFINITY.add_routes(router, service, ["/classify"], classify, body=ClassifyBody, docs=docs)


async def classify(context: RequestContext) -> Response:
    """Return the labels of each input with their scores, highest score first."""
    body = await context.body(ClassifyBody)
    data, reply = await labelled(context, body.input, Names("input"), raw=bool(body.raw_scores))
    headers = usage_headers(reply, num_chars(body.input))
    return await context.json(list_object(context.service, reply, data, kind="classify"), headers=headers)


def ranking_content(service: Service, body: RerankBody, ranking: Ranking) -> dict[str, object]:
    """Return the reply to a body of /rerank that has "documents"."""
    results = relevance_results(body, ranking, lambda text: text)
    return result_object(service, ranking.reply, "rerank", results=results) | service.notes.fields()


async def model_fields(service: Service) -> Mapping[str, object]:
    """Return what Infinity adds to an entry of /models. Raises Unavailable until a worker has loaded the model."""
    model, status = await service.model(), await service.status()
    return {
        "owned_by": "infinity",  # Infinity's client accepts no other owner
        "backend": "torch",
        "capabilities": _CAPABILITIES[model.kind],
        "stats": {
            "queue_fraction": status["queue_texts"] / status["queue_capacity"],
            "queue_absolute": status["queue_texts"],
            "results_pending": status["open_requests"],
            "batch_size": status["max_batch_size"],
        },
    }


def health_fields() -> Mapping[str, object]:
    """Return what Infinity adds to /health: the time in seconds since 1970."""
    return {"unix": time.time()}
