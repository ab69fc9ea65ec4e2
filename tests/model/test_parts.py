"""A batch merges parts of several requests: none of them makes the others wrong, slow or public."""

from __future__ import annotations

import itertools
import logging
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bert_serving.protocol import EncodeOptions, InvalidRequest
from bert_serving.protocol.trace_names import TraceNames
from bert_serving.protocol.workers import Batch, Failed, Part, Rejected, Result, Vectors
from bert_serving.server.worker import computation, tokenization
from bert_serving.server.worker.computation import Computation, TokenizedBatch
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.parts import TokenizedPart, tokenize_parts
from bert_serving.server.worker.pooling_plan import PoolingPlan
from bert_serving.server.worker.tokenization import TokenizerThreads
from torch import Tensor

from tests.support.computations import computed
from tests.support.encoders import shared_encoder
from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S

GOOD = Part(["the quick brown fox", "hello world"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = make_model(tmp_path_factory.mktemp("tiny"), "bert")
    return shared_encoder(folder, device="cpu", dtype="float32", all_layers=True)


def compute(encoder: Encoder, parts: list[Part]) -> Result:
    batch = TokenizedBatch(1, tokenize_parts(encoder, parts), 0.0)
    result = computed(Computation(encoder, batch, np.dtype(np.float32)))
    assert isinstance(result, Result)
    return result


@pytest.mark.parametrize(
    "bad",
    [
        Part([[5, 2**31 - 1]]),
        Part([[-1]]),
        Part([[2**70]]),
        Part(["a"], EncodeOptions(pooling_layer=(2**30,))),
        Part(["a"], EncodeOptions(pooling_layer=(-1, 2))),
        Part(["a"], EncodeOptions(dimensions=2**30)),
        Part(["a"], EncodeOptions(pooling_strategy=("SPLADE",))),
        Part(["a"], EncodeOptions(prompt_name="none")),
        Part(["a"], spans=[[[0, 2**31 - 1]]]),
        Part(["word " * 600], EncodeOptions(truncate="error")),
        Part(["word " * 600], EncodeOptions(long_text="chunk", prompt="word " * 300)),
    ],
)
def test_a_bad_part_fails_alone(encoder: Encoder, bad: Part) -> None:
    first, rejected, last = compute(encoder, [GOOD, bad, GOOD]).part_results
    assert isinstance(rejected, Rejected)
    assert isinstance(rejected.error, InvalidRequest)
    for good in (first, last):
        assert isinstance(good, Vectors)
        assert np.abs(good.rows - encoder.encode(list(GOOD.texts))).max() <= 1e-6


def test_errors_repeat_little_of_a_huge_value(encoder: Encoder) -> None:
    bad = Part(["a"], EncodeOptions(prompt_name="x" * 1_000_000))
    (rejected,) = compute(encoder, [bad]).part_results
    assert isinstance(rejected, Rejected)
    assert len(rejected.error.message) < 500


def _layer_lists(num: int) -> Iterator[tuple[int, ...]]:
    """Return different lists of the three layers of the model."""
    lists = itertools.chain.from_iterable(itertools.permutations((-1, -2, -3), n) for n in (1, 2, 3))
    return itertools.islice(lists, num)


def test_many_different_options_cost_what_their_own_texts_cost(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = []
    token_vectors = PoolingPlan.token_vectors

    def counting(self: PoolingPlan, hidden: dict[int, Tensor]) -> Tensor:
        vectors = token_vectors(self, hidden)
        pooled.append(len(vectors))
        return vectors

    layers = list(_layer_lists(15))
    parts = [
        Part(["hello world", "the fox"], EncodeOptions(pooling_layer=of_part, normalize=normalize))
        for of_part in layers
        for normalize in (False, True)
    ]
    parts += [Part(["one two"], EncodeOptions(pooling_strategy=("NONE",), pooling_layer=of)) for of in layers]
    expected = [
        encoder.encode(
            list(part.texts), pooling_layer=part.options.pooling_layer, normalize=part.options.normalize
        )
        for part in parts[:30]
    ]
    monkeypatch.setattr(PoolingPlan, "token_vectors", counting)
    results = compute(encoder, parts).part_results
    assert sum(pooled) == 4 * 2 * 30 + 4 * 15  # each text has four tokens
    for part_result, rows in zip(results, expected, strict=False):
        assert isinstance(part_result, Vectors)
        assert np.abs(part_result.rows - rows).max() <= 1e-5


class _Broken(RuntimeError):
    def __init__(self) -> None:
        super().__init__("cannot read 'a secret text'" + "x" * 1_000_000)


def _raise(*args: Any, **options: Any) -> Any:
    raise _Broken


def test_an_error_is_logged_without_the_texts_of_users(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tokenize_parts(encoder, [GOOD])
    monkeypatch.setattr(Encoder, "forward_steps", _raise)
    with caplog.at_level(logging.INFO):
        batch = TokenizedBatch(7, parts, 0.0, TraceNames(("req-1",)))
        result = computed(Computation(encoder, batch, np.dtype(np.float32)))
    assert isinstance(result, Failed)
    assert result.message.startswith("_Broken: cannot read")
    assert len(result.message) <= 300
    assert "cannot compute batch id=7 trace=req-1 error=_Broken" in caplog.text
    assert "in _raise" in caplog.text
    assert "secret" not in caplog.text


def test_a_batch_that_cannot_be_tokenized_fails_alone(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokenization, "_SMALL_CHARS", -1)
    inbox: queue.SimpleQueue[Batch | TokenizedBatch | Failed | None] = queue.SimpleQueue()
    threads = TokenizerThreads(encoder, inbox)
    with monkeypatch.context() as patch:
        patch.setattr(computation, "tokenize_parts", _raise)
        threads.put(Batch(1, [GOOD]))
        failed = inbox.get(timeout=HANG_S)
    assert isinstance(failed, Failed)
    assert failed.batch_id == 1
    assert "secret" not in caplog.text
    threads.put(Batch(2, [GOOD]))
    tokenized = inbox.get(timeout=HANG_S)
    assert isinstance(tokenized, TokenizedBatch)
    (part,) = tokenized.parts
    assert isinstance(part, TokenizedPart)
    assert sum(each.text.num_tokens for each in part.prepared) == 10


def test_small_batches_are_tokenized_where_they_are_computed(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox: queue.SimpleQueue[Batch | TokenizedBatch | Failed | None] = queue.SimpleQueue()
    threads = TokenizerThreads(encoder, inbox)
    small, long, ids = Batch(1, [GOOD]), Batch(2, [Part(["word " * 2000])]), Batch(3, [Part([[5, 6]])])
    for batch in (small, long, ids):
        threads.put(batch)
    found = [inbox.get(timeout=HANG_S) for _ in range(3)]
    assert small in found
    assert {batch.batch_id for batch in found if isinstance(batch, TokenizedBatch)} == {2, 3}
    threads.close()
    result = computed(Computation(encoder, small, np.dtype(np.float32)))
    assert isinstance(result, Result)
    assert result.tokenize_ms > 0
    monkeypatch.setattr(computation, "tokenize_parts", _raise)
    assert isinstance(computed(Computation(encoder, small, np.dtype(np.float32))), Failed)


def test_a_short_text_passes_a_long_one_that_is_being_tokenized(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "_SMALL_CHARS", -1)
    inbox: queue.SimpleQueue[Batch | TokenizedBatch | Failed | None] = queue.SimpleQueue()
    gate: queue.SimpleQueue[None] = queue.SimpleQueue()

    def slow(encoder: Encoder, parts: list[Part]) -> Any:
        if parts[0].texts[0] == "long":
            gate.get(timeout=HANG_S)
        return tokenize_parts(encoder, parts)

    monkeypatch.setattr(computation, "tokenize_parts", slow)
    threads = TokenizerThreads(encoder, inbox)
    for batch_id, text in enumerate(["long", "long", "short", "short"], 1):
        threads.put(Batch(batch_id, [Part([text])]))
    ready = [inbox.get(timeout=HANG_S) for _ in range(2)]
    assert {batch.batch_id for batch in ready if batch} == {3, 4}
    gate.put(None)
    gate.put(None)
    assert {batch.batch_id for batch in (inbox.get(timeout=HANG_S), inbox.get(timeout=HANG_S)) if batch} == {1, 2}
