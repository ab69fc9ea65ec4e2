"""All routes treat API keys, compressed bodies, error messages and headers in the same way."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from bert_serving.protocol import (
    MAX_TEXT_CHARS,
    DeadlineExceeded,
    EncodeReply,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
    Usage,
)
from bert_serving.server.gateway.context import RequestContext
from bert_serving.server.gateway.dialect import BERT_AS_SERVICE, Dialect
from bert_serving.server.gateway.dialects import bert_as_service
from bert_serving.server.gateway.dialects.cohere import COHERE
from bert_serving.server.gateway.dialects.cohere import EmbedBody as CohereEmbedBody
from bert_serving.server.gateway.dialects.infinity import INFINITY
from bert_serving.server.gateway.dialects.ollama import OLLAMA
from bert_serving.server.gateway.dialects.openai import OPENAI, EmbeddingsBody
from bert_serving.server.gateway.dialects.tei import (
    TEI,
    AnyBody,
    EmbedBody,
    PredictBody,
    SimilarityBody,
)
from bert_serving.server.gateway.dialects.vertex import _ContentsBody
from bert_serving.server.gateway.errors import Unprocessable, UnreadableBody
from bert_serving.server.gateway.keys import Keyring
from bert_serving.server.gateway.rerank import RerankBody
from bert_serving.server.gateway.stream import LineBuffer
from bert_serving.server.gateway.tokenizing import DecodeBody, TokenizeBody
from bert_serving.server.gateway.usage import usage_headers
from bert_serving.server.keys import KeySource, hash_of, unnamed_keys
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.launch import body_limits
from fastapi import Request
from numpy import zeros
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.types import Message

from tests.support.gateway import make_service

MAX_BYTES = 1000


def request_with(body: bytes = b"", **headers: str) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs}, receive)


def read(body: bytes, model: type[BaseModel] = EmbedBody, **headers: str) -> Any:
    service = make_service(max_bytes=MAX_BYTES)
    return asyncio.run(RequestContext(request_with(body, **headers), service).body(model))


def keyring(*keys: str) -> Keyring:
    return Keyring(KeySource(unnamed_keys(map(hash_of, keys))))


# -- API keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer one"},
        {"authorization": "bearer  two "},
        {"authorization": "one"},
        {"x_api_key": "two"},
        {"authorization": "Basic proxy", "x_api_key": "two"},
    ],
)
def test_a_key_is_accepted_in_every_supported_header(headers: dict[str, str]) -> None:
    keyring("one", "two").check(request_with(**headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Basic one"},
        {"authorization": "Bearer on"},
        {"authorization": "Bearer one two"},
        {"authorization": "Bearer \xff"},
        {"x_api_key": "Bearer three"},
    ],
)
def test_other_headers_are_refused_if_there_are_keys(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="send Authorization: Bearer <key>"):
        keyring("one", "two").check(request_with(**headers))
    Keyring().check(request_with(**headers))


# -- request bodies ------------------------------------------------------------------------------------


def test_a_gzip_body_is_decompressed() -> None:
    body = b'{"inputs": "hello"}'
    for coding in ("gzip", "GZIP"):
        assert read(gzip.compress(body), content_encoding=coding).inputs == ["hello"]
    assert read(body, content_encoding="identity").inputs == ["hello"]


def packed(data: bytes) -> bytes:
    """Return the data in gzip's format, without a timestamp.

    The result is part of a test's name, which must be the same in every process of pytest-xdist.
    """
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("body", "coding", "said"),
    [
        (b"{}", "gzip", "the body is not valid gzip: Error -3 while decompressing data: incorrect header check"),
        (b"", "gzip", "the body is not valid gzip: its end is missing"),
        (packed(b'{"inputs": "hello"}')[:-4], "gzip", "the body is not valid gzip: its end is missing"),
        (
            packed(b"{") + packed(b"}"),
            "gzip",
            "the body is not valid gzip: there is data after its end",
        ),
        (b"{}", "br", "content-encoding must be gzip, got 'br'"),
    ],
)
def test_invalid_gzip_and_other_encodings_are_refused(body: bytes, coding: str, said: str) -> None:
    with pytest.raises(UnreadableBody) as caught:
        read(body, content_encoding=coding)
    assert caught.value.message == said


def test_json_is_parsed_once_however_many_models_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def counted(raw: bytes, **_: object) -> object:
        parsed.append(raw)
        return from_json(raw)

    monkeypatch.setattr("bert_serving.server.gateway.context.read_json", counted)
    service = make_service(max_bytes=MAX_BYTES)
    context = RequestContext(request_with(gzip.compress(b'{"inputs": ["a"]}'), content_encoding="gzip"), service)

    async def read_twice() -> tuple[AnyBody, EmbedBody]:
        return await context.body(AnyBody), await context.body(EmbedBody)

    first, second = asyncio.run(read_twice())
    assert first.inputs == second.inputs == ["a"]
    assert parsed == [b'{"inputs": ["a"]}']


def test_a_body_is_decompressed_only_up_to_the_limit() -> None:
    def body_of(size: int) -> bytes:
        return gzip.compress(b'{"inputs": "' + b"x" * (size - 14) + b'"}')

    assert len(read(body_of(MAX_BYTES), content_encoding="gzip").inputs[0]) == MAX_BYTES - 14
    for size in (MAX_BYTES + 1, 500_000):
        with pytest.raises(PayloadTooLarge, match="the body must have at most 1000 bytes when decompressed"):
            read(body_of(size), content_encoding="gzip")


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        (EmbedBody, b"{}", "the body has no 'inputs'"),
        (EmbedBody, b"[]", "the body must be a JSON object"),
        (EmbedBody, b'{"inputs": 5}', "inputs: must be a string, a list of strings, or token ids, got 5"),
        (EmbedBody, b'{"inputs": null}', "inputs: must be a string, a list of strings, or token ids, got null"),
        (
            EmbedBody,
            b'{"inputs": "a", "dimensions": 0}',
            "dimensions: input should be greater than or equal to 1, got 0",
        ),
        (
            EmbedBody,
            b'{"inputs": "a", "dimensions": "8"}',
            "dimensions: input should be a valid integer, got '8'",
        ),
        (
            EmbedBody,
            b'{"inputs": "a", "truncation_direction": "up"}',
            "truncation_direction: input should be 'left' or 'right', got 'up'",
        ),
        (EmbeddingsBody, b'{"inputs": "a"}', "the body has no 'input'"),
        (SimilarityBody, b'{"inputs": {"sentences": ["a"]}}', "the body has no 'inputs.source_sentence'"),
        (TokenizeBody, b'{"inputs": ["a", 5]}', "inputs[1]: input should be a valid string, got 5"),
        (RerankBody, b'{"query": "a"}', 'the body must have a non-empty list "texts" or "documents"'),
        (
            PredictBody,
            b'{"inputs": [["a", "b", "c"]]}',
            "inputs: must contain lists of one or two strings, got [['a'",
        ),
    ],
)
def test_an_error_message_is_one_line_that_names_the_field(model: type[BaseModel], body: bytes, said: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        read(body, model)
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("body", [b"", b"not json", b"\xff\xfe", b'{"inputs": "a"', b"[" * 900])
def test_a_body_that_is_not_json_is_reported(body: bytes) -> None:
    with pytest.raises(UnreadableBody, match=r"^the body is not JSON: "):
        read(body)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(Unprocessable) as caught:
        read(b'{"inputs": "a", "dimensions": "' + b"9" * 500 + b'"}')
    assert len(caught.value.message) < 200


def test_null_counts_as_absent_and_unknown_fields_are_ignored() -> None:
    nulls = (
        b'{"inputs": "a", "truncate": null, "truncation_direction": null, "prompt_name": null, "normalize": null,'
    )
    body = read(nulls + b' "dimensions": null, "encoding_format": null, "output_dtype": null, "foo": [1]}')
    assert body.options() == {"truncate": "right", "prompt_name": None}
    assert read(b'{"inputs": "a", "truncation_direction": "Left"}').options()["truncate"] == "left"
    assert (
        read(b'{"inputs": "a", "truncate": false, "truncation_direction": "Left"}').options()["truncate"]
        == "error"
    )


# -- responses -----------------------------------------------------------------------------------------


def test_an_error_says_when_to_retry() -> None:
    response = BERT_AS_SERVICE.error_response(Overloaded("the queue is full", retry_after_ms=1200))
    assert (response.status_code, response.headers["retry-after"], response.headers["retry-after-ms"]) == (
        429,
        "2",
        "1200",
    )
    assert BERT_AS_SERVICE.error_response(Unauthorized("no")).headers["www-authenticate"] == "Bearer"
    assert BERT_AS_SERVICE.error_response(TimeoutError("no answer")).status_code == 503


@pytest.mark.parametrize("dialect", [BERT_AS_SERVICE, OPENAI, INFINITY, TEI, COHERE, OLLAMA], ids=lambda d: d.tag)
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (PayloadTooLarge("too large"), 413, None),
        (Overloaded("full"), 429, "1"),
        (Overloaded("full", retry_after_ms=2500), 429, "3"),
        (Unavailable("starting", retry_after_ms=1000), 503, "1"),
        (Unavailable("stopping"), 503, None),
        (DeadlineExceeded("late"), 504, None),
    ],
    ids=["413", "429", "429 with time", "503 with time", "503", "504"],
)
def test_every_dialect_has_the_status_and_the_retry_time(
    dialect: Dialect, error: ServingError, status: int, retry_after: str | None
) -> None:
    response = dialect.error_response(error)
    assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
    assert error.message in bytes(response.body).decode()


def test_headers_have_the_times_and_the_truncated_texts() -> None:
    usage = Usage([3, 4], total_ms=12.4, queue_ms=1.6, tokenize_ms=0.5, compute_ms=9.8)
    reply = EncodeReply(b"a", b"1", zeros((2, 2)), truncated=[1], usage=usage)
    assert usage_headers(reply, 11) == {
        "x-compute-characters": "11",
        "x-compute-tokens": "7",
        "x-compute-time": "10",
        "x-total-time": "12",
        "x-tokenization-time": "0",
        "x-queue-time": "2",
        "x-inference-time": "10",
        "x-truncated-count": "1",
        "x-truncated": "1",
    }
    many = EncodeReply(b"a", b"1", zeros((2, 2)), truncated=list(range(100_000)), usage=usage)
    assert usage_headers(many, 11)["x-truncated-count"] == "100000"
    assert len(usage_headers(many, 11)["x-truncated"]) < 2000


# -- a few kilobytes must not occupy a gateway ---------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (TokenizeBody, {"inputs": [1] * 10_000}),
        (DecodeBody, {"ids": [["a"] * 10_000] * 2}),
        (_ContentsBody, {"instances": [1] * 10_000}),
        (CohereEmbedBody, {"inputs": [1] * 10_000}),
        (CohereEmbedBody, {"inputs": [{"content": [1] * 10_000}]}),
        (CohereEmbedBody, {"texts": ["a"], "embedding_types": [1] * 10_000}),
    ],
)
def test_of_many_wrong_items_only_the_first_is_described(model: type[BaseModel], body: object) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= 2  # a wrong item, and a field that is missing because of it


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (TokenizeBody, {"inputs": [1] * 11}),
        (EmbedBody, {"inputs": ["a"] * 11}),
        (RerankBody, {"query": "a", "texts": ["a"] * 11}),
        (SimilarityBody, {"inputs": {"source_sentence": "a", "sentences": ["a"] * 11}}),
    ],
)
def test_the_number_of_items_is_checked_before_the_items(model: type[BaseModel], body: object) -> None:
    context = RequestContext(request_with(json.dumps(body).encode()), make_service(max_items=10))
    with pytest.raises(PayloadTooLarge, match="may have at most 10 texts, got 11"):
        asyncio.run(context.body(model))


def test_the_levels_of_a_body_are_limited() -> None:
    body = {"id": 1, "texts": ["a"], "inputs": ["a"], "more": [{"b": [1]}, [[1]]]}
    for limit, is_refused in ((3, True), (4, False)):
        service = make_service(max_nesting=limit)
        read = RequestContext(request_with(json.dumps(body).encode()), service).body(EmbedBody)
        refused = pytest.raises(ValueError, match=f"more than {limit} levels") if is_refused else nullcontext()
        with refused:
            asyncio.run(read)
        with refused:
            bert_as_service._parse(json.dumps(body).encode(), service)


def test_the_number_of_texts_is_a_share_of_the_queue_or_smaller() -> None:
    assert body_limits(Settings(queue_capacity=100, flow_share=0.3))["max_items"] == 30
    assert body_limits(Settings(queue_capacity=100, flow_share=0.3, http_max_texts=20))["max_items"] == 20
    assert body_limits(Settings(queue_capacity=100, flow_share=0.3, http_max_texts=40))["max_items"] == 30


def test_a_body_that_grows_when_it_is_parsed_is_refused_before() -> None:
    body = b'{"inputs": [' + b"{}," * 500_000 + b"{}]}"  # 1.5 MB, which would become 32 MB
    context = RequestContext(request_with(body), make_service(held_bytes=64 << 20))
    with pytest.raises(PayloadTooLarge, match="needs more than 32 MiB"):
        asyncio.run(context.body(EmbedBody))


@pytest.mark.parametrize(
    "read_texts",
    [
        lambda texts: asyncio.run(make_service().encode(texts)),
        lambda texts: bert_as_service._parse(json.dumps({"id": 1, "texts": texts}).encode(), make_service()),
    ],
    ids=["all routes", "/encode"],
)
def test_a_text_that_is_too_long_is_413(read_texts: Callable[[list[str]], object]) -> None:
    with pytest.raises(PayloadTooLarge, match=r"^texts\[1\] may have at most 4194304 characters, got 4194305$"):
        read_texts(["a", "x" * (MAX_TEXT_CHARS + 1)])


def test_lines_of_a_stream_are_found_without_searching_a_byte_twice() -> None:
    buffer = LineBuffer()
    line = b"x" * 500_000
    lines = [each for i in range(len(line)) for each in buffer.feed(line[i : i + 1])]
    lines += buffer.feed(b"\n\nsecond\nthi")
    lines += buffer.feed(b"rd")
    assert lines == [line, b"", b"second"]
    assert buffer.rest() == b"third"
