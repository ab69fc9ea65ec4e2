"""bert-as-service's HTTP: POST /encode, GET /status/server, GET /status/client."""

from __future__ import annotations

import json
from typing import Any, NoReturn
from urllib.parse import parse_qs

import numpy as np
import orjson
from bert_serving.client import AsyncBertClient
from bert_serving.protocol import (
    EncodeOptions,
    InvalidRequest,
    ServingError,
    check_texts,
    options_from_json,
    parse_json,
)
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from .body import error_body


class EncodeBody(BaseModel):
    """What /encode takes. It documents the route; `_parse` checks, in words of its own."""

    model_config = ConfigDict(extra="allow")

    id: Any = Field(description="comes back as it is", examples=[123])
    texts: list[str] | list[list[str]] = Field(
        description="sentences, or lists of tokens", examples=[["hello world"]]
    )
    is_tokenized: bool = Field(False, description="texts are lists of tokens")
    options: dict[str, Any] = Field(
        {},
        description="what this request wants in another way than the server was started for: pooling_strategy, "
        "pooling_layer, normalize, dimensions, truncate, long_text, prompt, prompt_name, pairs",
        examples=[{"pooling_strategy": ["REDUCE_MEAN", "CLS_TOKEN"], "normalize": True}],
    )


class EncodeResult(BaseModel):
    id: Any
    result: list[list[float]] | list[list[list[float]]] = Field(
        description="a vector for each text, in the order of the texts; with NONE one for each token of it"
    )
    truncated: list[int] | None = Field(None, description="indices of the texts that were cut; absent: none")
    status: int = Field(examples=[200])


class ErrorResult(BaseModel):
    description: str
    type: str
    status: int


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResult, "description": "the request cannot be understood"},
    413: {"model": ErrorResult, "description": "too many texts, or too large a body"},
    429: {"model": ErrorResult, "description": "the queue is full; see Retry-After"},
    503: {"model": ErrorResult, "description": "the service is not there"},
}


def create_router(client: AsyncBertClient) -> APIRouter:
    """Return the routes in front of a client."""
    router = APIRouter(tags=["bert-as-service"])

    @router.post(
        "/encode",
        response_model=EncodeResult,
        responses=_ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": EncodeBody.model_json_schema()}},
            }
        },
    )
    async def encode(request: Request) -> Response:
        """Return a vector for each text."""
        try:
            raw = await request.body()
            body = _parse(_form_to_json(raw) if _is_form(request, raw) else raw)
            _, reply = await client.encode_reply(body["texts"], body["options"])
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody: the client left while it sent
        except (ServingError, TimeoutError) as error:
            return _error(error)
        cut = {"truncated": reply.truncated} if reply.truncated else {}
        return _json({"id": body["id"], "result": np.ascontiguousarray(reply.rows), **cut, "status": 200})

    @router.get("/status/server", responses={503: _ERRORS[503]})
    async def status_server() -> Response:
        """Return the server's settings, counters and workers."""
        try:
            return _json({**await client.server_status(), "status": 200})
        except (ServingError, TimeoutError) as error:
            return _error(error)

    @router.get("/status/client")
    async def status_client() -> Response:
        """Return the state of this gateway's own client."""
        status = client.status
        status["identity"] = list(status["identity"])  # a list of integers, as in the original
        status["pending_request"] = sorted(status["pending_request"])
        return _json({**status, "status": 200})

    return router


def _is_form(request: Request, raw: bytes) -> bool:
    """Return whether the body is a form: curl -d calls everything one, JSON too."""
    return not raw.lstrip().startswith(b"{") and request.headers.get("content-type", "").startswith(
        "application/x-www-form-urlencoded"
    )


def _form_to_json(raw: bytes) -> bytes:
    """Return a form's fields as the JSON body that they stand for: `texts` may come several times."""
    try:
        fields = parse_qs(raw.decode(), keep_blank_values=True)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the form is not UTF-8: {exc}") from exc
    single = {name: values[-1] for name, values in fields.items() if name != "texts"}
    return orjson.dumps({**single, **({"texts": fields["texts"]} if "texts" in fields else {})})


def _parse(raw: bytes) -> dict[str, Any]:
    """Return the body with `texts` and an `id` that is ready to be sent back. Raises InvalidRequest."""
    body = parse_json(raw)
    if not isinstance(body, dict):
        raise InvalidRequest('the body must be a JSON object: {"id": ..., "texts": [...]}')
    for key in ("id", "texts"):
        if key not in body:
            raise InvalidRequest(f'the body has no "{key}"; expected {{"id": ..., "texts": [...]}}')
    try:
        is_tokenized = check_texts(body["texts"])
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from exc
    if body.get("is_tokenized") and not is_tokenized:
        raise InvalidRequest("is_tokenized is set, so texts must be lists of tokens")
    return {"texts": body["texts"], "options": _options(body.get("options")), "id": _echo(raw, body["id"])}


def _options(value: Any) -> EncodeOptions:
    """Return the options of a request. Raises InvalidRequest."""
    try:
        options = options_from_json({} if value is None else value)
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from exc
    if refused := [name for name in ("ragged", "show_tokens", "show_offsets") if getattr(options, name)]:
        raise InvalidRequest(f"option {refused[0]!r} has no place in the result of /encode")
    return options


def _echo(raw: bytes, identifier: Any) -> orjson.Fragment:
    """Return the id as it came in the body, where it was read as `identifier`. Raises InvalidRequest."""
    try:
        is_small = isinstance(identifier, int) and identifier.bit_length() < 64
        if not (is_small or isinstance(identifier, str | None)):
            # It may hold a number that was rounded or is too large: here they stay the text that they were.
            identifier = json.loads(
                raw, parse_int=orjson.Fragment, parse_float=orjson.Fragment, parse_constant=_NotJson
            )["id"]
        return orjson.Fragment(orjson.dumps(identifier, default=_NotJson.refuse))
    except (TypeError, RecursionError) as exc:
        raise InvalidRequest(f"id cannot be sent back: {exc.__cause__ or exc}") from exc


class _NotJson:
    """NaN, Infinity or -Infinity, which `json` reads though JSON has no such value."""

    def __init__(self, name: str) -> None:
        self._name = name

    def refuse(self) -> NoReturn:
        raise ValueError(f"{self._name} is no JSON")


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status_code=status, media_type="application/json", headers=headers)


def _error(error: ServingError | TimeoutError) -> Response:
    if not isinstance(error, ServingError):  # the broker does not answer at all
        return _json(error_body(str(error), "Unavailable", 503), 503)
    headers = None
    if error.retry_after_ms is not None:
        headers = {"Retry-After": str(-(-error.retry_after_ms // 1000))}
    return _json(error_body(error.message, type(error).__name__, error.http_status), error.http_status, headers)
