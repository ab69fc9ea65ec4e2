"""Ranking texts by a query, in the shapes of TEI (`texts`) and of Cohere, Jina and Infinity (`documents`)."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from bert_serving.protocol import EncodeReply, TextPair
from fastapi import Response
from pydantic import BeforeValidator, Field, model_validator

from .classify import ranked, relevance
from .dialect import Call, usage_headers
from .fields import Body, Side


def _document(value: Any) -> Any:
    """Return the text of a document, which may be an object."""
    return value.get("text") if isinstance(value, dict) else value


Document = Annotated[str, BeforeValidator(_document)]


class RerankBody(Body):
    query: str
    texts: list[str] | None = Field(None, description="in TEI's shape")
    documents: list[Document] | None = Field(None, description="in Cohere's, Jina's and Infinity's")
    truncate: bool | None = None
    truncation_direction: Side = None
    raw_scores: bool | None = False
    return_text: bool | None = False
    return_documents: bool | None = False
    top_n: Annotated[int, Field(ge=1)] | None = None
    model: Any = None

    @model_validator(mode="after")
    def _has_some(self) -> RerankBody:
        if not (self.texts or self.documents):
            raise ValueError('the body must have "texts" or "documents", and some in it')
        return self

    @property
    def candidates(self) -> list[str]:
        """The texts that are ranked."""
        return self.texts or self.documents or []


async def rerank(call: Call) -> Response:
    """Return the texts' places in the list and their scores, the best first."""
    body = await call.body(RerankBody)
    ranking, reply = await rank(call, body)
    headers = usage_headers(reply, sum(map(len, body.candidates)))
    if body.texts is None:
        return await call.json(infinity_object(call, body, ranking, reply), headers=headers)
    found = [
        {"index": i, **({"text": body.texts[i]} if body.return_text else {}), "score": score}
        for i, score in ranking
    ]
    return await call.json(found, headers=headers)


async def rank(call: Call, body: RerankBody) -> tuple[list[tuple[int, float]], EncodeReply]:
    """Return (index, score) of the texts, the best first, and the reply behind them."""
    side = "error" if body.truncate is False else body.truncation_direction or "right"
    pairs = [TextPair(text=body.query, text_pair=text) for text in body.candidates]
    logits, reply = await call.service.vectors(pairs, pooling_strategy="LOGITS", truncate=side)
    return ranked(relevance(logits, raw=bool(body.raw_scores)))[: body.top_n], reply


def infinity_object(
    call: Call, body: RerankBody, ranking: list[tuple[int, float]], reply: EncodeReply
) -> dict[str, Any]:
    """Return a ranking in Infinity's shape."""
    assert reply.usage is not None, "the service asks for it"
    num_tokens = sum(reply.usage.num_tokens)
    return {
        "object": "rerank",
        "results": [
            {
                "index": i,
                "relevance_score": score,
                **({"document": body.candidates[i]} if body.return_documents else {}),
            }
            for i, score in ranking
        ],
        "model": call.service.model_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "id": f"rerank-{uuid.uuid4().hex}",
        "created": int(time.time()),
    }
