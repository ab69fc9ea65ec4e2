"""Ranks texts by their relevance to a query. Dialects differ in the shape of the reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from bert_serving.protocol import EncodeReply
from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from .classify import ranked, relevance
from .context import RequestContext
from .errors import NoTexts, WrongModel
from .fields import Side, TextList, TextsBody
from .service import Service
from .texts import Names
from .usage import num_chars, usage_headers


def _documents(value: object) -> object:
    """Return the texts of documents. A document is a string, or an object with the field "text"."""
    if not isinstance(value, list):
        return value
    return [each.get("text") if isinstance(each, dict) else each for each in value]


Documents = Annotated[TextList, BeforeValidator(_documents)]


class RerankBody(TextsBody):
    query: str
    texts: TextList | None = Field(None, description="the texts to rank, in TEI's requests")
    documents: Documents | None = Field(
        None, description="the texts to rank, in requests of Cohere, Jina and Infinity"
    )
    truncate: bool | None = None
    truncation_direction: Side = None
    raw_scores: bool | None = False
    return_text: bool | None = False
    return_documents: bool | None = False
    top_n: Annotated[int, Field(ge=1)] | None = Field(
        None, validation_alias=AliasChoices("top_n", "top_k"), description="Voyage's clients call it `top_k`"
    )
    truncation: bool | None = Field(None, description="what Voyage's clients call `truncate`")
    model: object = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> RerankBody:
        if self.texts is None and self.documents is None:
            raise ValueError('the body must have a non-empty list "texts" or "documents"')
        return self

    @property
    def candidates(self) -> list[object]:
        """The texts to rank."""
        return self.texts or self.documents or []


@dataclass(frozen=True, slots=True)
class Ranking:
    """Texts ordered by relevance.

    places: (index of the text in the request, score), highest score first; at the end those that have no score,
    because they could not be encoded. reply: the reply with the logits.
    """

    places: list[tuple[int, float | None]]
    reply: EncodeReply
    headers: dict[str, str]


def relevance_results(
    body: RerankBody, ranking: Ranking, shown: Callable[[object], object]
) -> list[dict[str, object]]:
    """Return the places of a ranking as Cohere's API writes them.

    shown: returns how a document is shown, if the body asks for the documents.
    """
    return [
        {
            "index": i,
            "relevance_score": score,
            **({"document": shown(body.candidates[i])} if body.return_documents else {}),
        }
        for i, score in ranking.places
    ]


#: Returns the JSON content of a response with a ranking.
RankingContent: TypeAlias = Callable[[Service, RerankBody, Ranking], object]


async def rank(context: RequestContext, body: RerankBody) -> Ranking:
    """Return the texts of the body, ranked. Raises WrongModel if the model is not a reranker."""
    if (await context.service.model()).kind not in ("reranker", "classifier"):
        raise WrongModel("the model is not a reranker: start the server with one to use this route")
    if not body.candidates:
        raise NoTexts(f"{'documents' if body.texts is None else 'texts'} must not be empty")
    of_query = Names(others={0: "query"}, may_be_empty=True)
    (query,) = await context.service.with_on_error("error").readable([body.query], of_query)
    side = "error" if body.truncate is False or body.truncation is False else body.truncation_direction or "right"
    pairs = [{"text": query, "text_pair": text} for text in body.candidates]
    names = Names("texts" if body.texts else "documents", query="query", may_be_empty=True)
    logits, reply = await context.service.vectors(pairs, names, pooling_strategy="LOGITS", truncate=side)
    places = ranked(relevance(logits, raw=bool(body.raw_scores)))[: body.top_n]
    errors = context.service.notes.errors
    return Ranking(
        [(i, None if i in errors else score) for i, score in places],
        reply,
        usage_headers(reply, num_chars(body.candidates)),
    )
