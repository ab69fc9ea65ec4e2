"""What a type checker says of the clients' calls. The functions below are checked, not run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bert_serving.client import (
    AsyncBertClient,
    BertClient,
    ConcurrentBertClient,
    EncodeOptionsDict,
    Response,
    TokenVectors,
)
from bert_serving.protocol import EncodeOptions, Rows, TextPair
from typing_extensions import assert_type

ROOT = Path(__file__).parents[2]


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


def results_of_a_concurrent_client(client: ConcurrentBertClient, texts: list[str]) -> None:
    assert_type(client.encode(texts), Rows)
    assert_type(client.encode(texts, show_tokens=True), tuple[Rows, Sequence[Sequence[str]]])


async def results_of_an_asyncio_client(client: AsyncBertClient, texts: list[str]) -> None:
    assert_type(await client.encode(texts, truncate="left"), Rows)
    assert_type(await client.encode(texts, show_tokens=True), tuple[Rows, Sequence[Sequence[str]]])
    assert_type(await client.encode_tokens(texts), list[TokenVectors])


def wrong_calls(client: BertClient) -> None:
    """Each line is an error. mypy also reports an `ignore` that ignores nothing."""
    client.encode("a string")  # type: ignore[call-overload]
    client.encode(["text"], poolin="NONE")  # type: ignore[call-overload]
    client.encode(["text"], normalize="yes")  # type: ignore[call-overload]
    client.encode(["text"], truncate="middle")  # type: ignore[call-overload]
    client.encode_tokens(["text"], poolin="NONE")  # type: ignore[call-arg]


@pytest.mark.timeout(600)
def test_calls_have_the_types_that_this_file_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", __file__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_options_of_a_call_are_the_options_of_a_request_that_do_not_set_its_form() -> None:
    of_replies = {"ragged", "show_tokens", "show_offsets", "show_usage"}
    assert set(EncodeOptionsDict.__annotations__) == set(EncodeOptions.__slots__) - of_replies
