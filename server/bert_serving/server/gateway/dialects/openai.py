"""OpenAI's embeddings, which Infinity's clients and most others speak: POST /v1/embeddings, GET /v1/models."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from bert_serving.protocol import EncodeReply, InvalidRequest, Overloaded, ServingError, Unauthorized
from fastapi import APIRouter, Response
from pydantic import AliasChoices, BeforeValidator, Field

from ..classify import label_scores, normalized
from ..dialect import Call, Dialect, NotJson, Unprocessable, usage_headers
from ..fields import Body, Dimensions, Strings, Texts, num_chars
from ..output import Container, Dtype, binary_response, container_for, convert, encoded
from ..service import Service

_TYPES: dict[type[ServingError], str] = {
    InvalidRequest: "invalid_request_error",
    Unauthorized: "authentication_error",
    Overloaded: "rate_limit_error",
}


class EmbeddingsBody(Body):
    input: Texts
    model: Any = None
    encoding_format: Container | None = None
    output_dtype: Dtype | None = None
    # 0 is Infinity's word for all of them, and output_dimension what LiteLLM sends to it.
    dimensions: Annotated[Dimensions, BeforeValidator(lambda value: None if value == 0 else value)] = Field(
        None, validation_alias=AliasChoices("dimensions", "output_dimension")
    )
    user: Any = None


class ClassifyBody(Body):
    input: Strings
    model: Any = None
    raw_scores: bool | None = False


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    OPENAI.add(router, service, ["/v1/embeddings", "/embeddings"], embeddings, body=EmbeddingsBody)
    OPENAI.add(router, service, ["/v1/models", "/models"], models)
    OPENAI.add(router, service, ["/classify"], classify, body=ClassifyBody)


async def embeddings(call: Call) -> Response:
    """Return a vector of unit length for each input, with the number of tokens that it took."""
    body = await call.body(EmbeddingsBody)
    container = container_for(call.request.headers, body.encoding_format)
    rows, reply = await call.service.vectors(body.input, normalize=True, dimensions=body.dimensions)
    vectors = convert(rows, body.output_dtype or "float32")  # base64 is read as such, -fp16 or not
    headers = usage_headers(reply, num_chars(body.input))
    if (response := binary_response(vectors, container, headers)) is not None:
        return response
    data = [
        {"object": "embedding", "embedding": vector, "index": i}
        for i, vector in enumerate(encoded(vectors, container))
    ]
    return await call.json(list_object(call.service, reply, data), headers=headers)


async def models(call: Call) -> Response:
    """Return the one model that is served."""
    model, status = await call.service.model(), await call.service.status()
    capabilities = {"embedding": ["embed"], "splade": ["embed_sparse"], "classifier": ["classify", "embed"]}
    entry = {
        "id": call.service.model_name,
        "object": "model",
        "created": 0,
        # Infinity's client wants these, and takes no other owner.
        "owned_by": "infinity",
        "backend": "torch",
        "capabilities": capabilities.get(model.kind, ["rerank"]),
        "stats": {
            "queue_fraction": status["queue_texts"] / status["queue_capacity"],
            "queue_absolute": status["queue_texts"],
            "results_pending": status["open_requests"],
            "batch_size": status["max_batch_size"],
        },
    }
    return await call.json({"object": "list", "data": [entry]})


async def classify(call: Call) -> Response:
    """Return the labels of each input with their scores, the best first, as Infinity does."""
    body = await call.body(ClassifyBody)
    model = await call.service.model()
    logits, reply = await call.service.vectors(body.input, pooling_strategy="LOGITS")
    scores = logits if body.raw_scores else normalized(logits)
    data = label_scores(scores, model.labels)
    headers = usage_headers(reply, num_chars(body.input))
    return await call.json(list_object(call.service, reply, data, kind="classify"), headers=headers)


def list_object(
    service: Service, reply: EncodeReply, data: Sequence[Any], *, kind: str = "list"
) -> dict[str, Any]:
    """Return what stands around the data, with what Infinity's clients want beside OpenAI's."""
    return {
        "object": kind,
        "data": data,
        "model": service.model_name,
        "usage": usage_object(reply),
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        **({"truncated": reply.truncated} if reply.truncated else {}),
    }


def usage_object(reply: EncodeReply) -> dict[str, int]:
    """Return how many tokens the model computed, special ones included."""
    assert reply.usage is not None, "the service asks for it"
    num_tokens = int(np.sum(reply.usage.num_tokens))
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def _error(error: ServingError) -> tuple[int, Any]:
    """OpenAI's client reads `error`; pymilvus and TEI's read what stands beside it."""
    status = error.http_status
    if (
        isinstance(error, InvalidRequest)
        and status == InvalidRequest.http_status
        and not isinstance(error, NotJson)
    ):
        status = Unprocessable.http_status
    kind = next((name for cls, name in _TYPES.items() if isinstance(error, cls)), "server_error")
    inner = {"message": error.message, "type": kind, "param": None, "code": error.code}
    return status, {"error": inner, "message": error.message, "type": kind, "code": status}


OPENAI = Dialect("OpenAI, Infinity", _error)
