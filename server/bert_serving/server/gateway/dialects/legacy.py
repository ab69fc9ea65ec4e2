"""bert-as-service's HTTP: POST /encode, GET /status/server, GET /status/client; and what /encode can do beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    InvalidRequest,
    ServingError,
    check_spans,
    check_texts,
    options_from_json,
    parse_json,
    split_rows,
)
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..dialect import Call, Dialect, NotJson, Unprocessable, usage_headers
from ..fields import num_chars
from ..output import Container, Dtype, binary_response, container_for, convert, encoded
from ..service import Service

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_MAX_FORM_FIELDS = 1 << 20


class EncodeBody(BaseModel):
    """What /encode takes. It documents the route; `_parse` checks, in words of its own."""

    model_config = ConfigDict(extra="allow")

    id: Any = Field(description="comes back as it is", examples=[123])
    texts: list[str] | list[list[str]] | list[list[int]] = Field(
        description="sentences, or lists of tokens or of token ids", examples=[["hello world"]]
    )
    is_tokenized: bool = Field(False, description="texts are lists of tokens")
    options: dict[str, Any] = Field(
        {},
        description="what this request wants in another way than the server was started for: pooling_strategy, "
        "pooling_layer, normalize, dimensions, truncate, long_text, prompt, prompt_name, pairs, ragged, "
        "show_tokens, show_offsets, show_usage",
        examples=[{"pooling_strategy": ["REDUCE_MEAN", "CLS_TOKEN"], "normalize": True}],
    )
    spans: list[list[tuple[int, int]]] | None = Field(
        None, description="for each text [start, end] in characters: each gets a vector of its own (late chunking)"
    )
    encoding_format: Container | None = None
    output_dtype: Dtype | None = None


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    LEGACY.add(router, service, ["/encode"], encode, body=EncodeBody)
    LEGACY.add(router, service, ["/status/server"], status_server)
    LEGACY.add(router, service, ["/status/client"], status_client)


async def encode(call: Call) -> Response:
    """Return a vector for each text; with spans, or pooling_strategy NONE, a list of vectors for each."""
    raw = await _json_of(call)
    body = _parse(raw)
    container = container_for(call.request.headers, body["encoding_format"])
    reply = await call.service.encode_reply(body["texts"], body["options"], body["spans"])
    vectors = convert(reply.rows, body["output_dtype"])
    headers = usage_headers(reply, num_chars(body["texts"]))
    if reply.counts is not None and container in ("raw", "npy"):
        raise InvalidRequest("texts with any number of vectors have no rectangle: ask for JSON, or without ragged")
    if (response := binary_response(vectors, container, headers)) is not None:
        return response
    result: Any = vectors
    if reply.counts is not None:
        result = [encoded(part, container) for part in split_rows(vectors, reply.counts)]
    elif vectors.ndim == 2:
        result = encoded(vectors, container)
    content = {"id": body["id"], "result": result, **_beside(reply, body["options"]), "status": 200}
    return await call.json(content, headers=headers)


async def status_server(call: Call) -> Response:
    """Return the server's settings, counters and workers."""
    return await call.json({**await call.service.status(), "status": 200})


async def status_client(call: Call) -> Response:
    """Return the state of this gateway's own client."""
    status = call.service.client.status
    status["identity"] = list(status["identity"])  # a list of integers, as in the original
    status["pending_request"] = sorted(status["pending_request"])
    return await call.json({**status, "status": 200})


def error_response(description: str, kind: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return bert-as-service's error body."""
    content = orjson.dumps({"description": description, "type": kind, "status": status})
    return Response(content, status, headers, "application/json")


def _beside(reply: EncodeReply, options: EncodeOptions) -> dict[str, Any]:
    """Return what stands beside the result, where there is something to say or it was asked for."""
    usage = reply.usage if options.show_usage else None
    found = {
        "truncated": reply.truncated,
        "tokens": reply.tokens if options.show_tokens else None,
        "offsets": reply.offsets,
        "usage": usage,
    }
    return {name: value for name, value in found.items() if value}


async def _json_of(call: Call) -> bytes:
    """Return the JSON body, or the one that a form stands for."""
    raw = await call.raw()
    kind = call.request.headers.get("content-type", "")
    # curl -d calls everything a form, JSON too.
    if not kind.startswith(_FORMS) or raw.lstrip().startswith(b"{"):
        return raw
    if "content-encoding" in call.request.headers:
        raise NotJson("a form may not come packed")
    async with call.request.form(max_fields=_MAX_FORM_FIELDS, max_part_size=call.service.max_body_bytes) as form:
        if not all(isinstance(value, str) for _, value in form.multi_items()):
            raise InvalidRequest("a form may hold text fields, no files")
        fields: dict[str, Any] = {name: form[name] for name in form if name != "texts"}
        if "texts" in form:  # which may come several times
            fields["texts"] = form.getlist("texts")
    if isinstance(flag := fields.get("is_tokenized"), str):
        fields["is_tokenized"] = flag.strip().lower() not in ("", "0", "false", "no")
    return orjson.dumps(fields)


def _parse(raw: bytes) -> dict[str, Any]:
    """Return the body, checked, with an `id` that is ready to be sent back. Raises InvalidRequest."""
    body = parse_json(raw)
    if not isinstance(body, dict):
        raise InvalidRequest('the body must be a JSON object: {"id": ..., "texts": [...]}')
    for key in ("id", "texts"):
        if key not in body:
            raise InvalidRequest(f'the body has no "{key}"; expected {{"id": ..., "texts": [...]}}')
    try:
        is_tokenized = check_texts(body["texts"])
        options = options_from_json(body.get("options") or {})
        if (spans := body.get("spans")) is not None:
            check_spans(spans, len(body["texts"]))
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from exc
    if body.get("is_tokenized") and not is_tokenized:
        raise InvalidRequest("is_tokenized is set, so texts must be lists of tokens")
    return {
        "texts": body["texts"],
        "options": options,
        "spans": spans,
        "id": echo(raw, body["id"]),
        **{name: _one_of(kinds, name, body.get(name)) for name, kinds in _CHOICES.items()},
    }


_CHOICES: dict[str, TypeAdapter[Any]] = {
    "encoding_format": TypeAdapter(Container | None),
    "output_dtype": TypeAdapter(Dtype | None),
}


def _one_of(kinds: TypeAdapter[Any], name: str, value: Any) -> Any:
    try:
        return kinds.validate_python(value)
    except ValidationError as exc:
        raise InvalidRequest(f"{name}: {exc.errors()[0]['msg']}, got {value!r:.80}") from exc


def echo(raw: bytes, identifier: Any) -> orjson.Fragment:
    """Return the id as it came in the JSON object, where it was read as `identifier`. Raises InvalidRequest."""
    try:
        is_small = isinstance(identifier, int) and identifier.bit_length() < 64
        if not (is_small or isinstance(identifier, str | None)):
            # It may hold a number that was rounded or is too large: here they stay the text that they were.
            identifier = json.loads(
                raw, parse_int=orjson.Fragment, parse_float=orjson.Fragment, parse_constant=_NotJsonValue
            )["id"]
        return orjson.Fragment(orjson.dumps(identifier, default=_NotJsonValue.refuse))
    except (TypeError, RecursionError) as exc:
        raise InvalidRequest(f"id cannot be sent back: {exc.__cause__ or exc}") from exc


class _NotJsonValue:
    """NaN, Infinity or -Infinity, which `json` reads though JSON has no such value."""

    def __init__(self, name: str) -> None:
        self._name = name

    def refuse(self) -> NoReturn:
        raise ValueError(f"{self._name} is no JSON")


def _error(error: ServingError) -> tuple[int, Any]:
    if isinstance(error, NotJson | Unprocessable):  # here both are just that
        error = InvalidRequest(error.message)
    description = {"description": error.message, "type": type(error).__name__, "status": error.http_status}
    return error.http_status, description


LEGACY = Dialect("bert-as-service", _error)
