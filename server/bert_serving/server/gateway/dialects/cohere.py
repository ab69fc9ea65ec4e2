"""Cohere's /v2/embed and /v2/rerank."""

from __future__ import annotations

import base64
import uuid
from typing import Any, Literal

import numpy as np
from bert_serving.protocol import EncodeReply, InvalidRequest, Rows, ServingError
from fastapi import APIRouter, Response
from pydantic import Field, model_validator

from ..dialect import Call, Dialect, Unprocessable, usage_headers
from ..fields import Body, Dimensions, num_chars
from ..output import convert
from ..rerank import RerankBody, rank
from ..service import Service

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]

_SIDES = {"NONE": "error", "START": "left", "END": "right"}
#: Names under which models keep the prompt for a kind of input.
_PROMPTS = {"search_query": ("query",), "search_document": ("document", "passage")}


class _Content(Body):
    type: str
    text: str | None = None


class _Input(Body):
    content: list[_Content]


class EmbedBody(Body):
    texts: list[str] | None = None
    inputs: list[_Input] | None = Field(None, description="the same as `texts`, in parts; text alone is read")
    model: Any = None
    input_type: str | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: Dimensions = None
    truncate: Literal["NONE", "START", "END"] | None = None

    @model_validator(mode="after")
    def _has_texts(self) -> EmbedBody:
        if not (self.texts or self.inputs):
            raise ValueError('the body must have "texts", and some in it')
        if any(part.type != "text" or part.text is None for each in self.inputs or () for part in each.content):
            raise ValueError("inputs: this server reads text alone")
        return self

    @property
    def strings(self) -> list[str]:
        """The texts, however they came."""
        return self.texts or [" ".join(part.text or "" for part in each.content) for each in self.inputs or ()]


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    COHERE.add(router, service, ["/v2/embed"], embed, body=EmbedBody)
    COHERE.add(router, service, ["/v2/rerank", "/v1/rerank"], rerank, body=RerankBody)


async def embed(call: Call) -> Response:
    """Return the vectors of the texts, in each of the types that were asked for."""
    body = await call.body(EmbedBody)
    prompts = (await call.service.model()).prompts
    names = [name for name in _PROMPTS.get(body.input_type or "", ()) if name in prompts]
    rows, reply = await call.service.vectors(
        body.strings,
        dimensions=body.output_dimension,
        truncate=_SIDES[body.truncate or "END"],
        normalize=True,
        prompt_name=names[0] if names else None,
    )
    embeddings = {kind: _as(kind, rows) for kind in body.embedding_types or ["float"]}
    content = {
        "id": str(uuid.uuid4()),
        "embeddings": embeddings,
        "texts": body.strings,
        "response_type": "embeddings_by_type",
        "meta": _meta(reply, "input_tokens"),
    }
    return await call.json(content, headers=usage_headers(reply, num_chars([*body.strings])))


async def rerank(call: Call) -> Response:
    """Return the documents' places in the list and their scores, the best first."""
    body = await call.body(RerankBody)
    ranking, reply = await rank(call, body)
    results = [
        {
            "index": i,
            "relevance_score": score,
            **({"document": {"text": body.candidates[i]}} if body.return_documents else {}),
        }
        for i, score in ranking
    ]
    content = {"id": str(uuid.uuid4()), "results": results, "meta": _meta(reply, "input_tokens")}
    return await call.json(content, headers=usage_headers(reply, sum(map(len, body.candidates))))


def _as(kind: EmbeddingType, rows: Rows) -> Any:
    if kind == "base64":
        return [base64.b64encode(row).decode() for row in np.ascontiguousarray(rows, dtype="<f4")]
    return convert(rows, "float32" if kind == "float" else kind)


def _meta(reply: EncodeReply, unit: str) -> dict[str, Any]:
    assert reply.usage is not None, "the service asks for it"
    num_tokens = sum(reply.usage.num_tokens)
    return {"api_version": {"version": "2"}, "billed_units": {unit: num_tokens}, "tokens": {unit: num_tokens}}


def _error(error: ServingError) -> tuple[int, Any]:
    # Like Cohere, 400 for all that the sender got wrong.
    status = InvalidRequest.http_status if isinstance(error, Unprocessable) else error.http_status
    return status, {"id": str(uuid.uuid4()), "message": error.message}


COHERE = Dialect("Cohere", _error)
