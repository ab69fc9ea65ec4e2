"""The estimated sizes of requests and results are not smaller than the real ones."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from bert_serving.protocol import EncodeOptions, EncodeRequest, Text
from bert_serving.server.broker.sizes import _CHUNK_BYTES, _SHORT_BODY_BYTES, ResultSizes, parsed_size

from tests.support.model_facts import model_facts


def real_bytes(value: object) -> int:
    """Return the memory that a parsed JSON value takes."""
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(real_bytes(each) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return sys.getsizeof(value) + sum(map(real_bytes, value))
    return sys.getsizeof(value)


@pytest.mark.parametrize(
    "value",
    [
        [[]] * 1000,
        [{}] * 1000,
        [[1]] * 1000,
        [{"a": 1}] * 1000,
        [{f"key {i}": i for i in range(1000)}],
        ["a"] * 1000,
        ["a long text " * 100] * 100,
        ["ä" * 50] * 100,
        ["漢字" * 50] * 100,
        ["x" * 1000 + "漢"] * 100,
        ["x" * 1000 + "😀"] * 100,
        [[2**40] * 100] * 100,
        [1.5] * 1000,
        {"texts": ["a"], "x": [[]] * 1000},
        "x" * 3_000_000,
        "x" * 3_000_000 + "😀",
        ["\n" * 1000, '"' * 1000, "\\" * 1000],
        ["\\" * 300_000, "é" * 300_000],
        *(
            "x" * n + "漢" for n in range(_CHUNK_BYTES - 8, _CHUNK_BYTES + 2)
        ),  # its escape lies across a chunk's end
        *("x" * n + "😀" for n in range(_CHUNK_BYTES - 8, _CHUNK_BYTES + 2)),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("ensure_ascii", [False, True])
def test_a_parsed_body_takes_no_more_than_its_estimate(value: object, ensure_ascii: bool) -> None:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=ensure_ascii).encode()
    assert real_bytes(json.loads(body)) <= parsed_size(body).num_bytes + 200  # for the outermost object


def test_the_estimate_of_ordinary_text_is_of_the_size_of_the_text() -> None:
    texts = ["An ordinary sentence, with a comma; it has about a hundred characters, and a number: 12345."] * 1000
    body = json.dumps(texts).encode()
    assert real_bytes(texts) < parsed_size(body).num_bytes < 5 * len(body)


@pytest.mark.parametrize("text", ["a long text, " * 900, "x" * 9000, "é" * 9000, "漢" * 9000, "😀" * 9000])
@pytest.mark.parametrize("ensure_ascii", [False, True])
def test_a_character_counts_as_many_bytes_as_the_widest_of_its_body(text: str, ensure_ascii: bool) -> None:
    body = json.dumps([text], ensure_ascii=ensure_ascii).encode()
    assert len(body) >= _SHORT_BODY_BYTES
    width = 1 if text.isascii() else 4 if "😀" in text else 2
    assert parsed_size(body).num_bytes == 64 + 80 * text.count(",") + width * len(body)


def test_escapes_other_than_those_of_characters_widen_nothing() -> None:
    body = json.dumps(['a "word"\n' * 1000]).encode()
    assert parsed_size(body).num_bytes == 64 + len(body)


def test_a_memoryview_has_the_same_estimate_as_its_bytes() -> None:
    for body in (b'["a", "b"]', b'["a", "b"]' * 1000):
        assert parsed_size(memoryview(body)).num_bytes == parsed_size(body).num_bytes


def ten_tokens(text: Text) -> float:
    return 10.0


def vector_bytes(num_texts: int = 100, *, is_ready: bool = True, spans: Any = None, **options: Any) -> int:
    """Return the estimated bytes, without what a request takes in any case."""
    sizes = ResultSizes(max_seq_len=512)
    if is_ready:
        sizes.learn(model_facts(hidden_size=384, dimension=384, labels=("yes", "no", "maybe")))
    request = EncodeRequest(b"me", b"1", ["a"] * num_texts, EncodeOptions(**options), spans=spans)
    few = EncodeOptions(pooling_strategy=("REGRESSION",))
    base = sizes.of(EncodeRequest(b"me", b"1", request.texts, few), ten_tokens) - 4 * num_texts
    return sizes.of(request, ten_tokens) - base


@pytest.mark.parametrize(
    ("options", "components"),
    [
        ({}, 384),
        ({"pooling_strategy": "auto"}, 384),
        ({"dimensions": 64}, 64),
        ({"pooling_layer": (-1, -2, -3)}, 3 * 384),
        ({"pooling_strategy": ("REDUCE_MEAN_MAX",)}, 2 * 384),
        ({"pooling_strategy": ("REDUCE_MEAN", "REDUCE_MAX"), "pooling_layer": (-1, -2)}, 4 * 384),
        ({"pooling_strategy": ("LOGITS",)}, 3),
        ({"pooling_strategy": ("CLS_POOLED", "LOGITS"), "pooling_layer": (1, 2)}, 384 + 3),
    ],
)
def test_the_size_of_plain_vectors_is_exact(options: dict[str, Any], components: int) -> None:
    assert vector_bytes(**options) == 100 * 4 * components


def test_before_a_worker_is_ready_a_usual_width_is_assumed() -> None:
    assert vector_bytes(is_ready=False) == 100 * 4 * 1024


def test_token_vectors_count_in_the_result_and_in_the_reply() -> None:
    assert vector_bytes(pooling_strategy=("NONE",)) == 2 * 100 * 10 * 4 * 384
    assert vector_bytes(pooling_strategy=("NONE",), ragged=True) == 2 * 100 * 10 * 4 * 384


def test_padding_counts_in_the_reply() -> None:
    sizes = ResultSizes(token_rows=512)
    sizes.learn(model_facts(hidden_size=384))
    request = EncodeRequest(b"me", b"1", ["a"], EncodeOptions(pooling_strategy=("NONE",)))
    assert sizes.of(request, ten_tokens) >= (10 + 512) * 4 * 384


def test_each_span_has_a_vector() -> None:
    assert vector_bytes(2, spans=[[[0, 1], [1, 2]], [[0, 1]]]) == 2 * 3 * 4 * 384


def test_tokens_are_truncated_except_in_chunks() -> None:
    sizes = ResultSizes(max_seq_len=8)
    sizes.learn(model_facts())
    cut, whole = (
        sizes.of(
            EncodeRequest(b"me", b"1", ["a"], EncodeOptions(pooling_strategy=("NONE",), long_text=long_text)),
            ten_tokens,
        )
        for long_text in ("truncate", "chunk")
    )
    assert whole - cut == 2 * 2 * 4 * 384


def test_tokens_and_offsets_take_room_too() -> None:
    assert vector_bytes(show_tokens=True, show_offsets=True) > vector_bytes(show_tokens=True) > vector_bytes()
