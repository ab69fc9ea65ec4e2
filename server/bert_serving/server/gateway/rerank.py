"""Ranks texts by their relevance to a query. Dialects differ in the shape of the reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from bert_serving.protocol import EncodeReply, TextPair
from pydantic import BeforeValidator, Field, model_validator

from .classify import ranked, relevance
from .context import RequestContext
from .errors import WrongModel
from .fields import Body, Side
from .service import Service
from .usage import num_chars, usage_headers


def _document(value: object) -> object:
    """Return the text of a document. A document is a string, or an object with the field "text"."""
    return value.get("text") if isinstance(value, dict) else value


Document = Annotated[str, BeforeValidator(_document)]


class RerankBody(Body):
    query: str
    texts: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="the texts to rank, in TEI's requests"
    )
    documents: Annotated[list[Document], Field(fail_fast=True)] | None = Field(
        None, description="the texts to rank, in requests of Cohere, Jina and Infinity"
    )
    truncate: bool | None = None
    truncation_direction: Side = None
    raw_scores: bool | None = False
    return_text: bool | None = False
    return_documents: bool | None = False
    top_n: Annotated[int, Field(ge=1)] | None = None
    model: object = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> RerankBody:
        if not (self.texts or self.documents):
            raise ValueError('the body must have a non-empty list "texts" or "documents"')
        return self

    @property
    def candidates(self) -> list[str]:
        """The texts to rank."""
        return self.texts or self.documents or []


@dataclass(frozen=True, slots=True)
class Ranking:
    """Texts ordered by relevance.

    places: (index of the text in the request, score), highest score first. reply: the reply with the logits.
    """

    places: list[tuple[int, float]]
    reply: EncodeReply
    headers: dict[str, str]


#: Returns the JSON content of a response with a ranking.
RankingContent: TypeAlias = Callable[[Service, RerankBody, Ranking], object]


async def rank(context: RequestContext, body: RerankBody) -> Ranking:
    """Return the texts of the body, ranked. Raises WrongModel if the model is not a reranker."""
    if (await context.service.model()).kind not in ("reranker", "classifier"):
        raise WrongModel("the model is not a reranker: start the server with one to use this route")
    side = "error" if body.truncate is False else body.truncation_direction or "right"
    pairs = [TextPair(text=body.query, text_pair=text) for text in body.candidates]
    logits, reply = await context.service.vectors(pairs, pooling_strategy="LOGITS", truncate=side)
    places = ranked(relevance(logits, raw=bool(body.raw_scores)))[: body.top_n]
    return Ranking(places, reply, usage_headers(reply, num_chars(body.candidates)))
