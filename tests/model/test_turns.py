"""A worker computes its batches in turns, so that a long text does not hold up short ones."""

from __future__ import annotations

import numpy as np
import pytest
from bert_serving.protocol import EncodeOptions
from bert_serving.protocol.workers import Failed, Part, Result, Vectors
from bert_serving.server.worker.computation import Computation, TokenizedBatch, Turns
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from bert_serving.server.worker.parts import tokenize_parts

from tests.support.computations import computed
from tests.support.computations import step as step_of
from tests.support.encoders import shared_encoder
from tests.support.tiny_models import make_model

CHUNKED = EncodeOptions(long_text="chunk")
LONG = "the quick brown fox jumps over the lazy dog " * 800  # 7,200 tokens


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = make_model(tmp_path_factory.mktemp("tiny"), "bert")
    return shared_encoder(folder, device="cpu", dtype="float32", max_seq_len=64, max_batch_tokens=512)


def computation(encoder: Encoder, batch_id: int, texts: list[str]) -> Computation:
    parts = tokenize_parts(encoder, [Part(texts, CHUNKED)])
    return Computation(encoder, TokenizedBatch(batch_id, parts, 0.0), np.dtype(np.float32))


def step(turns: Turns) -> Result | None:
    result = step_of(turns)
    assert not isinstance(result, Failed)
    return result


def rows_of(result: Result) -> np.ndarray:
    (part,) = result.part_results
    assert isinstance(part, Vectors)
    return part.rows


def test_a_short_text_waits_for_at_most_two_micro_batches_of_a_long_one(encoder: Encoder) -> None:
    turns = Turns()
    turns.add(computation(encoder, 1, [LONG]))
    for batch_id in range(2, 9):
        assert step(turns) is None
        turns.add(computation(encoder, batch_id, ["hello world"]))
        ended = [step(turns), step(turns)]
        assert [result.batch_id for result in ended if result] == [batch_id]


def test_a_stream_of_short_texts_does_not_stop_a_long_one(encoder: Encoder) -> None:
    turns, long = Turns(), computation(encoder, 1, [LONG])
    turns.add(long)
    (prepared,) = encoder.prepare([LONG], CHUNKED)
    assert isinstance(prepared, PreparedText)
    num_steps = -(-prepared.text.num_tokens // 512)
    ended = []
    for batch_id in range(2, 2 + 2 * num_steps):
        turns.add(computation(encoder, batch_id, ["hello world"]))
        if (result := step(turns)) is not None:
            ended.append(result.batch_id)
    assert 1 in ended
    assert len(ended) >= num_steps - 1


def test_vectors_do_not_depend_on_the_turns(encoder: Encoder) -> None:
    texts = [[LONG], ["hello world", "one two three"], ["a fox"], [LONG[::-1], "six"]]
    turns = Turns()
    for batch_id, of_batch in enumerate(texts):
        turns.add(computation(encoder, batch_id, of_batch))
    rows = {}
    while len(turns):
        if (result := step(turns)) is not None:
            rows[result.batch_id] = rows_of(result)
    for batch_id, of_batch in enumerate(texts):
        assert np.array_equal(rows[batch_id], encoder.encode(of_batch, long_text="chunk"))


def test_a_batch_without_a_valid_text_is_finished_at_once(encoder: Encoder) -> None:
    result = computed(computation(encoder, 1, [[5000]]))  # type: ignore[list-item]
    assert isinstance(result, Result)
