"""Each request gets its own options, even if other requests in the same batch have other options."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient, InvalidRequest
from bert_serving.server import Encoder

from tests.support.running_server import RunningServer
from tests.support.sentences import sentences
from tests.support.waiting import HANG_S

TEXTS = [text[:400] for text in sentences(12)]
LONG = "The quick brown fox jumps over the lazy dog. " * 60  # more than two chunks
OPTIONS: list[dict[str, Any]] = [
    {},
    {"pooling_strategy": "CLS_TOKEN"},
    {"pooling_strategy": ["REDUCE_MEAN", "REDUCE_MAX"], "normalize": True},
    {"pooling_layer": [-1, -3]},
    {"pooling_strategy": "REDUCE_MEAN", "pooling_layer": 0},
    {"dimensions": 64},
    {"normalize": False},
    {"prompt": "query: "},
    {"truncate": "left"},
    {"long_text": "chunk"},
    {"pooling_strategy": "NONE"},
]


@pytest.fixture(scope="module")
def exact_server() -> Iterator[RunningServer]:
    with RunningServer("-dtype", "float32", "-cpu") as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def encoder(demo_model: Path) -> Encoder:
    return Encoder(demo_model, dtype="float32", device="cpu")


@pytest.fixture
def exact_client(exact_server: RunningServer) -> Iterator[BertClient]:
    with BertClient(**exact_server.ports, check_length=False) as client:
        yield client


def test_every_request_gets_its_own_options_in_a_shared_batch(
    exact_server: RunningServer, encoder: Encoder
) -> None:
    expected = [encoder.encode([*TEXTS, LONG], **options) for options in OPTIONS]

    def ask(k: int) -> float:
        with BertClient(**exact_server.ports, check_length=False) as client:
            rows = client.encode([*TEXTS, LONG], **OPTIONS[k % len(OPTIONS)])
        assert rows.shape == expected[k % len(OPTIONS)].shape
        return float(np.abs(rows - expected[k % len(OPTIONS)]).max())

    with ThreadPoolExecutor(11) as pool:
        assert max(pool.map(ask, range(3 * len(OPTIONS)))) <= 1e-5


@pytest.mark.parametrize("kind", [BertClient, ConcurrentBertClient])
def test_vectors_of_tokens_come_with_tokens_and_offsets(
    exact_server: RunningServer, encoder: Encoder, kind: type[BertClient]
) -> None:
    texts = ["Hello embeddings", "a"]
    with kind(**exact_server.ports) as client:
        found = client.encode_tokens(texts)
        (tokenized,) = client.encode_tokens([["hello"]], is_tokenized=True)
    for mine, expected in zip(found, encoder.encode_tokens(texts), strict=True):
        assert (mine.tokens, mine.offsets) == (expected.tokens, [list(o) for o in expected.offsets or []])
        assert np.abs(mine.vectors - expected.vectors).max() <= 1e-5
        mine.vectors[0] = 0  # the array belongs to the caller
    assert found[0].tokens == ["[CLS]", "hello", "em", "##bed", "##ding", "##s", "[SEP]"]
    assert (tokenized.tokens, tokenized.offsets) == (["[CLS]", "hello", "[SEP]"], None)


def test_spans_get_a_vector_each(exact_client: BertClient, encoder: Encoder) -> None:
    texts, spans = ["The cat sat. The dog ran off.", "Alone."], [[(0, 12), (13, 29)], [(0, 6)]]
    found, expected = exact_client.encode_spans(texts, spans), encoder.encode_spans(texts, spans)
    assert [rows.shape for rows in found] == [(2, 384), (1, 384)]
    assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(found, expected, strict=True))


def test_spans_beyond_max_seq_len_need_chunks(exact_client: BertClient, encoder: Encoder) -> None:
    spans = [[(0, 44), (len(LONG) - 45, len(LONG) - 1)]]
    with pytest.raises(InvalidRequest, match=r"texts\[0\]: span \[2655, 2699\] lies in the part .* that was cut"):
        exact_client.encode_spans([LONG], spans)
    (found,) = exact_client.encode_spans([LONG], spans, long_text="chunk")
    assert np.abs(found - encoder.encode_spans([LONG], spans, long_text="chunk")[0]).max() <= 1e-5


def test_asyncio_client_has_options_tokens_and_spans(exact_server: RunningServer, encoder: Encoder) -> None:
    async def ask() -> tuple[Any, Any, Any]:
        async with AsyncBertClient(**exact_server.ports) as client:
            return await asyncio.gather(
                client.encode(["hello"], pooling_strategy="SEP_TOKEN"),
                client.encode_tokens(["hello"]),
                client.encode_spans(["hello world"], [[(6, 11)]]),
            )

    row, (tokens,), (span,) = asyncio.run(ask())
    assert np.abs(row - encoder.encode(["hello"], pooling_strategy="SEP_TOKEN")).max() <= 1e-5
    assert (tokens.tokens, tokens.offsets) == (["[CLS]", "hello", "[SEP]"], [[0, 0], [0, 5], [0, 0]])
    assert span.shape == (1, 384)


def test_a_text_that_is_refused_is_numbered_and_costs_its_own_request_only(exact_server: RunningServer) -> None:
    texts = ["short enough"] * 300 + [LONG]  # more texts than one batch may hold
    with BertClient(**exact_server.ports) as strict, BertClient(**exact_server.ports) as other:
        other.encode(TEXTS, blocking=False)
        with pytest.raises(InvalidRequest, match=r"^texts\[300\]: a text may have at most 254 tokens"):
            strict.encode(texts, truncate="error")
        assert other.fetch_all()[0].shape == (len(TEXTS), 384)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"pooling": "CLS_TOKEN"}, TypeError, "no option 'pooling'; the options are pooling_strategy"),
        ({"pooling_strategy": "NO_SUCH_STRATEGY"}, ValueError, "must be one of auto, NONE"),
        ({"pooling_layer": 7}, InvalidRequest, r"pooling_layer must be in -6\.\.5 for this model, got 7"),
        ({"dimensions": 385}, InvalidRequest, r"dimensions must be in 1\.\.384 for this model, got 385"),
        ({"prompt_name": "haiku"}, InvalidRequest, "prompt_name must be one of"),
    ],
)
def test_unavailable_options_are_errors(
    exact_client: BertClient, options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        exact_client.encode(["a"], **options)


def test_http_takes_options_too(exact_server: RunningServer, encoder: Encoder) -> None:
    def post(options: object) -> httpx.Response:
        body = {"id": 1, "texts": TEXTS[:3], "options": options}
        return httpx.post(f"{exact_server.url}/encode", json=body, timeout=HANG_S)

    for asked in ({"pooling_strategy": "CLS_TOKEN", "normalize": True}, {"pooling_strategy": "NONE"}):
        rows = np.array(post(asked).json()["result"], np.float32)
        assert np.abs(rows - encoder.encode(TEXTS[:3], **asked)).max() <= 1e-5
    for bad in ({"pooling_layer": 7}, {"x": 1}, [1], {"show_tokens": 1}):
        assert post(bad).status_code == 400, bad


@pytest.mark.parametrize(
    ("flags", "length", "told"),
    [
        ([], 5, 512),  # length: the tokens of the longest text of the request
        (["-max_seq_len", 10], 10, 10),
        (["-max_seq_len", "NONE"], 5, None),
        (["-max_seq_len", "NONE", "-fixed_embed_length"], 512, None),
    ],
)
def test_the_array_of_all_token_vectors_has_the_originals_shape(
    tiny: Path, flags: list[object], length: int, told: int | None
) -> None:
    with RunningServer("-model_dir", tiny, "-cpu", "-pooling_strategy", "NONE", *flags) as server:
        server.wait_ready()
        with BertClient(**server.ports) as client:
            rows = client.encode(["one two three", "a"])
            config = client.server_config
    assert config["max_seq_len"] == told
    assert rows.shape == (2, length, 64)
    assert rows[0, :5].any(axis=1).all()
    assert not rows[0, 5:].any()
    assert rows[1, :3].any(axis=1).all()
    assert not rows[1, 3:].any()
