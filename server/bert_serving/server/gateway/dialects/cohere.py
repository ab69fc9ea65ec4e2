"""Cohere's embed and rerank, in versions 1 and 2 of its API."""

from __future__ import annotations

import base64
import uuid
from typing import Annotated, Literal, NotRequired, get_args

import numpy as np
from bert_serving.protocol import EncodeReply, InvalidRequest, Rows, ServingError
from fastapi import APIRouter, Response
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from ...number_formats import Numbers
from ..calls import path_of
from ..context import RequestContext
from ..dialect import Dialect
from ..errors import Unprocessable
from ..fields import Body, Dimensions, TextList, TextsBody
from ..openai_format import TokenUsage
from ..openapi import Docs
from ..output import convert
from ..prompts import prompt_for
from ..rerank import Ranking, RerankBody, rank, relevance_results
from ..service import Service
from ..texts import FailedTexts, Names, TextNotes
from ..usage import num_chars, num_tokens, usage_headers

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
_NUM_TYPES = len(get_args(EmbeddingType))

_SIDES = {"NONE": "error", "START": "left", "END": "right"}


class _Content(Body):
    type: str
    text: str | None = None


class _Input(Body):
    content: Annotated[list[_Content], Field(fail_fast=True)]


class EmbedBody(TextsBody):
    texts: TextList | None = None
    inputs: Annotated[list[_Input], Field(fail_fast=True)] | None = Field(
        None, description="instead of `texts`: each text is a list of parts; only parts of type text are supported"
    )
    model: object = None
    input_type: str | None = None
    embedding_types: Annotated[list[EmbeddingType], Field(fail_fast=True, max_length=_NUM_TYPES)] | None = None
    output_dimension: Dimensions = None
    truncate: Literal["NONE", "START", "END"] | None = None

    @model_validator(mode="after")
    def _check_texts(self) -> EmbedBody:
        if not (self.texts or self.inputs):
            raise ValueError('the body must have a non-empty list "texts"')
        if any(part.type != "text" or part.text is None for each in self.inputs or () for part in each.content):
            raise ValueError("inputs: every part must be of type text")
        return self

    @property
    def strings(self) -> list[object]:
        """The texts to encode: those of `texts`, or else those of `inputs`."""
        return self.texts or [" ".join(part.text or "" for part in each.content) for each in self.inputs or ()]


class CohereVersion(TypedDict):
    version: Literal["1", "2"]


class CohereUnits(TypedDict):
    input_tokens: int


class CohereMeta(TypedDict):
    api_version: CohereVersion
    billed_units: CohereUnits
    tokens: CohereUnits


_Numbers = list[list[int] | None]
_Floats = list[list[float] | None]

CohereTypes = TypedDict(  # noqa: UP013  # a field of a class could not have the name of a type
    "CohereTypes",
    {
        "float": _Floats,
        "int8": _Numbers,
        "uint8": _Numbers,
        "binary": _Numbers,
        "ubinary": _Numbers,
        "base64": list[str | None],
    },
    total=False,
)


class CohereEmbeddings(TypedDict):
    id: str
    embeddings: CohereTypes
    texts: list[object]
    response_type: Literal["embeddings_by_type"]
    meta: CohereMeta
    errors: NotRequired[FailedTexts]


class CohereFloats(TypedDict):
    id: str
    embeddings: _Floats
    texts: list[object]
    response_type: Literal["embeddings_floats"]
    meta: CohereMeta
    errors: NotRequired[FailedTexts]


class CohereDocument(TypedDict):
    text: str


class CohereRanked(TypedDict):
    index: int
    relevance_score: float | None
    document: NotRequired[CohereDocument]


class CohereRanking(TypedDict):
    id: str
    results: list[CohereRanked]
    meta: CohereMeta
    errors: NotRequired[FailedTexts]


class VoyageRanked(TypedDict):
    index: int
    relevance_score: float | None
    document: NotRequired[str]


class RankingV1(CohereRanking):
    """What Jina's and Voyage's clients read in addition to Cohere's fields."""

    object: Literal["list"]
    model: str
    usage: TokenUsage
    data: list[VoyageRanked]


class CohereError(TypedDict):
    id: str
    message: str


_EMBED_EXAMPLES = {
    "documents": {"model": "any", "texts": ["hello world", "one two three"], "input_type": "search_document"},
    "several types": {"model": "any", "texts": ["hello world"], "embedding_types": ["float", "int8", "base64"]},
    "inputs": {"model": "any", "inputs": [{"content": [{"type": "text", "text": "hello world"}]}]},
}
_RERANK_EXAMPLES = {
    "documents": {"model": "any", "query": "hello", "documents": ["hello world", "one two three"], "top_n": 1}
}


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    docs = Docs(CohereEmbeddings, _EMBED_EXAMPLES, needs=["embed"])
    COHERE.add_routes(router, service, ["/v2/embed"], embed, body=EmbedBody, docs=docs)
    docs = Docs(CohereFloats | CohereEmbeddings, _EMBED_EXAMPLES, needs=["embed"])
    COHERE.add_routes(router, service, ["/v1/embed"], embed_v1, body=EmbedBody, docs=docs)
    docs = Docs(CohereRanking, _RERANK_EXAMPLES, needs=["rerank"])
    COHERE.add_routes(router, service, ["/v2/rerank"], rerank, body=RerankBody, docs=docs)
    docs = Docs(RankingV1, _RERANK_EXAMPLES, needs=["rerank"])
    COHERE.add_routes(router, service, ["/v1/rerank"], rerank_v1, body=RerankBody, docs=docs)


async def embed(context: RequestContext) -> Response:
    """Return the vectors of the texts in each of the requested types."""
    body = await context.body(EmbedBody)
    rows, reply = await _vectors(context, body)
    embeddings = await context.off_loop(_as_types, body.embedding_types or ["float"], rows, context.service.notes)
    return await _embed_response(context, body, reply, "embeddings_by_type", embeddings)


async def embed_v1(context: RequestContext) -> Response:
    """Return the vectors of the texts: a list of vectors, or as in version 2 if `embedding_types` is given."""
    body = await context.body(EmbedBody)
    if body.embedding_types:
        return await embed(context)
    rows, reply = await _vectors(context, body)
    return await _embed_response(
        context, body, reply, "embeddings_floats", context.service.notes.nulled(list(rows))
    )


async def _vectors(context: RequestContext, body: EmbedBody) -> tuple[Rows, EncodeReply]:
    prompts = (await context.service.model()).prompts
    return await context.service.vectors(
        body.strings,
        Names("texts" if body.texts else "inputs"),
        dimensions=body.output_dimension,
        truncate=_SIDES[body.truncate or "END"],
        normalize=True,
        prompt_name=prompt_for(body.input_type, prompts),
    )


async def _embed_response(
    context: RequestContext, body: EmbedBody, reply: EncodeReply, kind: str, embeddings: object
) -> Response:
    content = {
        "id": str(uuid.uuid4()),
        "embeddings": embeddings,
        "texts": body.strings,
        "response_type": kind,
        "meta": _meta(context, reply),
        **context.service.notes.fields(),
    }
    return await context.json(content, headers=usage_headers(reply, num_chars(body.strings)))


async def rerank(context: RequestContext) -> Response:
    """Return the index and the score of each document, highest score first."""
    body = await context.body(RerankBody)
    ranking = await rank(context, body)
    return await context.json(_ranking_content(context, body, ranking), headers=ranking.headers)


async def rerank_v1(context: RequestContext) -> Response:
    """Return the index and the score of each document, highest score first.

    Jina's and Voyage's clients use this path too. Both read `usage`; Voyage's find the places in `data`.
    """
    body = await context.body(RerankBody)
    ranking = await rank(context, body)
    content = _ranking_content(context, body, ranking)
    tokens = num_tokens(ranking.reply)
    content |= {"object": "list", "model": context.service.model_name}
    content |= {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    content["data"] = relevance_results(body, ranking, lambda text: text)
    return await context.json(content, headers=ranking.headers)


def _ranking_content(context: RequestContext, body: RerankBody, ranking: Ranking) -> dict[str, object]:
    return {
        "id": str(uuid.uuid4()),
        "results": relevance_results(body, ranking, lambda text: {"text": text}),
        "meta": _meta(context, ranking.reply),
        **context.service.notes.fields(),
    }


def _as_types(kinds: list[EmbeddingType], rows: Rows, notes: TextNotes) -> dict[EmbeddingType, object]:
    return {kind: notes.nulled(_as_type(kind, rows)) for kind in kinds}


def _as_type(kind: EmbeddingType, rows: Rows) -> Numbers | list[str]:
    if kind == "base64":
        return [base64.b64encode(row).decode() for row in np.ascontiguousarray(rows, dtype="<f4")]
    return convert(rows, "float32" if kind == "float" else kind)


def _meta(context: RequestContext, reply: EncodeReply) -> dict[str, object]:
    version = "1" if path_of(context.request.scope).startswith("/v1/") else "2"
    units = {"input_tokens": num_tokens(reply)}
    return {"api_version": {"version": version}, "billed_units": units, "tokens": units}


def _describe_error(error: ServingError) -> tuple[int, object]:
    # Cohere returns 400 even for bodies that other dialects reject with 422.
    status = InvalidRequest.http_status if isinstance(error, Unprocessable) else error.http_status
    return status, {"id": str(uuid.uuid4()), "message": error.message}


COHERE = Dialect(
    "Cohere",
    _describe_error,
    CohereError,
    'Cohere\'s API, versions 1 and 2: `cohere.ClientV2(base_url="http://HOST:PORT", api_key="any")`.',
)
