"""bert-as-service's HTTP routes, extended: POST /encode, GET /status/server, GET /status/client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, NotRequired, TypeVar, cast

import orjson
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    InvalidRequest,
    PayloadTooLarge,
    Rows,
    Spans,
    Text,
    check_spans,
    options_from_json,
    shortened,
    split_rows,
)
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import Message
from typing_extensions import TypedDict

from ...number_formats import Dtype, Numbers
from ..context import RequestContext
from ..dialect import BERT_AS_SERVICE
from ..echo import echo
from ..errors import UnreadableBody
from ..json_body import check_nesting, read_json
from ..openapi import Docs
from ..output import Container, binary_response, container_for, convert, encoded
from ..service import Service
from ..texts import FailedTexts, readable_texts
from ..usage import num_chars, usage_headers

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_MAX_BLANKS = 1024
_MAX_FORM_BYTES = 1 << 20
_MAX_ORJSON_BYTES = 1 << 20  # limit for bodies that Python's parser may have to read

_T = TypeVar("_T")


class EncodeBody(BaseModel):  # it only documents the route: `_parse` does the checks
    """The JSON body of /encode."""

    model_config = ConfigDict(extra="allow")

    id: object = Field(description="returned as it was sent")
    texts: list[str] | list[list[str]] | list[list[int]] = Field(
        description="sentences, or lists of tokens or of token ids"
    )
    is_tokenized: bool = Field(False, description="texts are lists of tokens")
    options: dict[str, object] = Field(
        {},
        description="options of this request, in place of the server's settings: pooling_strategy, "
        "pooling_layer, normalize, dimensions, truncate, long_text, prompt, prompt_name, pairs, ragged, "
        "show_tokens, show_offsets, show_usage, on_error",
    )
    spans: list[list[tuple[int, int]]] | None = Field(
        None,
        description="for each text, spans [start, end] in characters; one vector for each span (late chunking)",
    )
    encoding_format: Container | None = None
    output_dtype: Dtype | None = None


class EncodeUsage(TypedDict):
    """What a request used; see the option show_usage. Times are in milliseconds."""

    num_tokens: list[int]
    total_ms: float
    queue_ms: float
    tokenize_ms: float
    compute_ms: float
    model: str


class EncodedTexts(TypedDict):
    """The reply of /encode. A result is a vector, a list of vectors, base64 of one of them, or null."""

    id: object
    result: list[list[float] | None] | list[list[list[float]] | None] | list[str | None]
    status: Literal[200]
    truncated: NotRequired[list[int]]
    tokens: NotRequired[list[list[str]]]
    offsets: NotRequired[list[list[tuple[int, int]]]]
    usage: NotRequired[EncodeUsage]
    errors: NotRequired[FailedTexts]


class ServerStatusReply(TypedDict):
    """The settings of the server, its counters, and its workers."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic reads it

    ready: bool
    workers: list[dict[str, Any]]
    status: Literal[200]


class ClientStatusReply(TypedDict):
    """The state of the client in the gateway."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic reads it

    identity: list[int]
    pending_request: list[int]
    status: Literal[200]


_EXAMPLES = {
    "a vector for each text": {"id": 1, "texts": ["hello world", "one two three"]},
    "two poolings": {
        "id": 2,
        "texts": ["hello world"],
        "options": {"pooling_strategy": ["REDUCE_MEAN", "CLS_TOKEN"], "normalize": True, "show_usage": True},
    },
    "a vector for each token": {
        "id": 3,
        "texts": ["hello world"],
        "options": {"pooling_strategy": "NONE", "show_tokens": True, "show_offsets": True},
    },
    "a vector for each span (late chunking)": {
        "id": 4,
        "texts": ["hello world"],
        "spans": [[[0, 5], [6, 11]]],
        "options": {"pooling_strategy": "REDUCE_MEAN", "ragged": True},
    },
    "base64": {"id": 5, "texts": ["hello world"], "encoding_format": "base64"},
    "a file in NumPy's format": {"id": 6, "texts": ["hello world"], "encoding_format": "npy"},
}


@dataclass(frozen=True, slots=True)
class _Encode:
    """A body of /encode that has been checked. identifier: the "id" of the body, as it will be returned."""

    identifier: orjson.Fragment
    texts: Sequence[Text]
    options: EncodeOptions
    spans: Sequence[Spans] | None
    container: Container | None
    dtype: Dtype | None


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes to the router."""
    docs = Docs(EncodedTexts, _EXAMPLES, "arrays")
    BERT_AS_SERVICE.add_routes(router, service, ["/encode"], encode, body=EncodeBody, docs=docs)
    BERT_AS_SERVICE.add_routes(router, service, ["/status/server"], status_server, docs=Docs(ServerStatusReply))
    BERT_AS_SERVICE.add_routes(router, service, ["/status/client"], status_client, docs=Docs(ClientStatusReply))


async def encode(context: RequestContext) -> Response:
    """Return a vector for each text; with spans or pooling_strategy NONE, a list of vectors for each text."""
    raw = await _json_of(context)
    body = await context.off_loop(_parse, raw, context.service)
    container = container_for(context.request.headers, body.container)
    context.service = context.service.with_on_error("null" if body.options.on_error == "null" else "error")
    reply = await context.service.encode_reply(body.texts, body.options, body.spans)
    notes = context.service.notes
    headers = usage_headers(reply, num_chars(body.texts))
    result: Sequence[object] | Numbers
    if reply.counts is not None:
        rows_by_text = split_rows(reply.rows, reply.counts)
        result = await context.off_loop(_results_of_any_length, rows_by_text, container, body.dtype)
    else:
        vectors = await context.off_loop(convert, reply.rows, body.dtype)
        if (response := binary_response(vectors, container, headers)) is not None:
            return response
        result = await context.off_loop(encoded, vectors, container) if vectors.ndim == 2 else vectors
    extras = {**_extras(reply, body.options), **notes.fields()}
    content = {"id": body.identifier, "result": notes.nulled(result), **extras, "status": 200}
    return await context.json(content, headers=headers)


async def status_server(context: RequestContext) -> Response:
    """Return the server's settings, its counters and its workers."""
    # `client` is the identity of the gateway's client: whoever knows it could receive the replies to all callers.
    return await context.json({**await context.service.status(), "client": "", "status": 200})


async def status_client(context: RequestContext) -> Response:
    """Return the state of the client that this gateway process uses, without its identity and its requests' ids.

    Both lists are empty: whoever knows them could receive the replies to all callers, or reply in their place.
    """
    hidden: dict[str, list[int]] = {"identity": [], "pending_request": []}  # lists, as in bert-as-service
    return await context.json({**context.service.client.status, **hidden, "status": 200})


def _results_of_any_length(rows_by_text: list[Rows], container: Container, dtype: Dtype | None) -> list[object]:
    if container in ("raw", "npy"):
        raise InvalidRequest("results of different lengths cannot be sent as raw or npy: ask for JSON or base64")
    return [encoded(convert(rows, dtype), container) for rows in rows_by_text]


def _extras(reply: EncodeReply, options: EncodeOptions) -> dict[str, object]:
    """Return the optional fields of the response: those that were requested, and the truncated texts if any."""
    fields = {
        "truncated": reply.truncated,
        "tokens": reply.tokens if options.show_tokens else None,
        "offsets": reply.offsets,
        "usage": reply.usage if options.show_usage else None,
    }
    return {name: value for name, value in fields.items() if value}


async def _json_of(context: RequestContext) -> bytes:
    """Return the JSON body, or a form converted to JSON."""
    raw = await context.raw()
    kind = context.request.headers.get("content-type", "")
    # curl -d declares every body as a form, even if the body is JSON.
    if not kind.startswith(_FORMS) or raw[:_MAX_BLANKS].lstrip().startswith(b"{"):
        return raw
    if "content-encoding" in context.request.headers:
        raise UnreadableBody("a form must not be compressed: send it without Content-Encoding")
    if len(raw) > _MAX_FORM_BYTES:
        raise PayloadTooLarge(f"a form may have at most {_MAX_FORM_BYTES} bytes: send JSON instead")
    form = await _form(context, raw)
    try:
        if not all(isinstance(value, str) for _, value in form.multi_items()):
            raise InvalidRequest("a form must contain only text fields, got a file")
        fields: dict[str, object] = {name: form[name] for name in form if name != "texts"}
        if "texts" in form:  # a form may repeat this field, once for each text
            fields["texts"] = form.getlist("texts")
    finally:
        await form.close()
    if isinstance(flag := fields.get("is_tokenized"), str):
        fields["is_tokenized"] = flag.strip().lower() not in ("", "0", "false", "no")
    return orjson.dumps(fields)


async def _form(context: RequestContext, raw: bytes) -> FormData:
    """Return the form in a body. Raises UnreadableBody."""

    async def receive() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    request = Request(context.request.scope, receive)
    max_fields = context.service.limits.max_form_fields
    try:
        return await request.form(max_fields=max_fields, max_files=0, max_part_size=_MAX_FORM_BYTES)
    except HTTPException as exc:  # Starlette's error for a form that it cannot read
        raise UnreadableBody(exc.detail) from exc


def _parse(raw: bytes, service: Service) -> _Encode:
    """Return the body after all checks. Raises InvalidRequest."""
    max_items = service.limits.max_items
    body = _parse_json(raw, service.limits.max_nesting)
    if not isinstance(body, dict):
        raise InvalidRequest('the body must be a JSON object: {"id": ..., "texts": [...]}')
    for key in ("id", "texts"):
        if key not in body:
            raise InvalidRequest(f'the body has no "{key}"; expected {{"id": ..., "texts": [...]}}')
    if isinstance(body["texts"], list) and len(body["texts"]) > max_items:
        raise PayloadTooLarge(f"a request may have at most {max_items} texts, got {len(body['texts'])}")
    try:
        asked = body.get("options") or {}
        options = options_from_json(asked)
        if "on_error" not in asked:
            options = replace(options, on_error=service.call.on_error)
        texts = readable_texts(body["texts"], service.notes, on_error=options.on_error, may_be_mixed=False)
        if (spans := body.get("spans")) is not None:
            check_spans(spans, len(texts))
    except PayloadTooLarge:
        raise
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from exc
    if body.get("is_tokenized") and not isinstance(texts[0], list):
        raise InvalidRequest("is_tokenized is set, so texts must be lists of tokens")
    return _Encode(
        identifier=echo(raw, body["id"]),
        texts=cast("Sequence[Text]", texts),
        options=options,
        spans=spans,
        container=_choice(_CONTAINER, "encoding_format", body.get("encoding_format")),
        dtype=_choice(_DTYPE, "output_dtype", body.get("output_dtype")),
    )


def _parse_json(raw: bytes, max_nesting: int) -> object:
    """Return the JSON value of a body. Raises InvalidRequest.

    A small body that orjson refuses is read by Python's parser, which is slower. It reads numbers of any size,
    which may be in the id, and lone surrogates.
    """
    try:
        if len(raw) > _MAX_ORJSON_BYTES:
            return read_json(raw, max_nesting=max_nesting, allow_inf_nan=False)
        try:
            value: object = orjson.loads(raw)
        except ValueError:
            value = json.loads(raw.decode(), parse_constant=_refuse_constant)
        check_nesting(value, raw, max_nesting)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not JSON: {exc}") from exc
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_CONTAINER: TypeAdapter[Container | None] = TypeAdapter(Container | None)
_DTYPE: TypeAdapter[Dtype | None] = TypeAdapter(Dtype | None)


def _choice(choices: TypeAdapter[_T], name: str, value: object) -> _T:
    try:
        return choices.validate_python(value)
    except ValidationError as exc:
        raise InvalidRequest(f"{name}: {exc.errors()[0]['msg']}, got {shortened(value)}") from exc
