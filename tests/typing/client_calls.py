"""Calls of the clients with the types that their results must have. mypy checks this file; it is never run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_type

from bert_serving.client import (
    AsyncBertClient,
    BertClient,
    ConcurrentBertClient,
    Response,
    TokenVectors,
)
from bert_serving.protocol import Rows, TextPair


def results_of_a_client(client: BertClient, texts: list[str]) -> None:
    assert_type(client.encode(texts), Rows)
    assert_type(client.encode(texts, pooling_strategy=["CLS", "MEAN"], pooling_layer=-2, normalize=True), Rows)
    assert_type(client.encode(texts, show_tokens=True), tuple[Rows, Sequence[Sequence[str]]])
    assert_type(client.encode(texts, blocking=False), None)
    assert_type(client.encode([["token"]], is_tokenized=True), Rows)
    assert_type(client.encode([[101, 102]], is_tokenized=True), Rows)
    assert_type(client.encode([TextPair(text="a", text_pair="b")]), Rows)
    assert_type(client.encode_tokens(texts), list[TokenVectors])
    assert_type(client.encode_spans(texts, [[(0, 1)]], prompt="query: "), list[Rows])
    assert_type(client.fetch(), Iterator[Response])
    assert_type(client.fetch_all(), list[Rows] | None)
    assert_type(client.fetch_all(concat=True), Rows | None)
    assert_type(client.encode_async([texts], show_tokens=True, dimensions=64), Iterator[Response])


def class_in_a_with_statement() -> None:
    with ConcurrentBertClient(max_concurrency=2) as client:
        assert_type(client, ConcurrentBertClient)


def results_of_a_concurrent_client(client: ConcurrentBertClient, texts: list[str]) -> None:
    assert_type(client.encode(texts), Rows)
    assert_type(client.encode(texts, show_tokens=True), tuple[Rows, Sequence[Sequence[str]]])


async def results_of_an_asyncio_client(client: AsyncBertClient, texts: list[str]) -> None:
    assert_type(await client.encode(texts, truncate="left"), Rows)
    assert_type(await client.encode(texts, show_tokens=True), tuple[Rows, Sequence[Sequence[str]]])
    assert_type(await client.encode_tokens(texts), list[TokenVectors])


def wrong_calls(client: BertClient) -> None:
    """Each line is a type error. If mypy accepts a line, it reports the line's `ignore` as unused."""
    client.encode("a string")  # type: ignore[call-overload]
    client.encode(["text"], poolin="NONE")  # type: ignore[call-overload]
    client.encode(["text"], normalize="yes")  # type: ignore[call-overload]
    client.encode(["text"], truncate="middle")  # type: ignore[call-overload]
    client.encode_tokens(["text"], poolin="NONE")  # type: ignore[call-arg]
