"""JSON in OpenAI's format, which the dialects of OpenAI and Infinity share: results, token usage and errors."""

from __future__ import annotations

import time
import uuid

from bert_serving.protocol import EncodeReply, InvalidRequest, Overloaded, ServingError, Unauthorized
from typing_extensions import TypedDict

from .errors import NoTexts, OtherHttpError, Unprocessable, UnreadableBody, WrongModel
from .service import Service
from .texts import Results
from .usage import num_tokens

_ERROR_TYPES: dict[type[ServingError], str] = {
    InvalidRequest: "invalid_request_error",
    Unauthorized: "authentication_error",
    Overloaded: "rate_limit_error",
    OtherHttpError: "invalid_request_error",
}


class TokenUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class OpenAIErrorFields(TypedDict):
    message: str
    type: str
    param: None
    code: str


class OpenAIError(TypedDict):
    """OpenAI's error body. The fields outside of `error` are for clients of other servers."""

    error: OpenAIErrorFields
    message: str
    type: str
    code: int


def list_object(service: Service, reply: EncodeReply, data: Results, *, kind: str = "list") -> dict[str, object]:
    """Return the object around a list of results, with the indices of truncated texts and the errors, if any."""
    content = result_object(service, reply, kind, data=data)
    return content | ({"truncated": reply.truncated} if reply.truncated else {}) | service.notes.fields()


def result_object(service: Service, reply: EncodeReply, kind: str, **results: object) -> dict[str, object]:
    """Return the object around results. Infinity's clients need `id` and `created`; OpenAI's do not."""
    tokens = num_tokens(reply)
    return {
        "object": kind,
        **results,
        "model": service.model_name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
    }


def describe_error(error: ServingError) -> tuple[int, object]:
    """Return the status and the body of an error.

    OpenAI's client reads `error`. The clients of pymilvus and of TEI read the other fields.
    """
    status = error.http_status
    if status == InvalidRequest.http_status and not isinstance(error, UnreadableBody | WrongModel | NoTexts):
        status = Unprocessable.http_status
    kind = next((name for cls, name in _ERROR_TYPES.items() if isinstance(error, cls)), "server_error")
    inner = {"message": error.message, "type": kind, "param": None, "code": error.code}
    return status, {"error": inner, "message": error.message, "type": kind, "code": status}
