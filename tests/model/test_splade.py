"""Sparse vectors equal those of sentence-transformers' SparseEncoder, for random models of several families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bert_serving.protocol import EncodeOptions
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from sentence_transformers import SparseEncoder

from tests.support.tiny_models import make_masked, make_model

TEXTS = ["the quick brown fox", "hello world", "a", "one two three four five six " * 8]
FAMILIES = ["bert", "distilbert", "roberta", "mpnet", "modernbert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_term_weights_equal_those_of_sentence_transformers(family: str, tmp_path: Path) -> None:
    folder = make_masked(tmp_path, family)
    expected = SparseEncoder(str(folder)).encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    vectors = Encoder(folder, dtype="float32", pooling_strategy="SPLADE").encode(TEXTS)
    assert vectors.shape == expected.shape
    assert (expected > 0).sum() > 100
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_sparse_folder_of_sentence_transformers_needs_no_setting(tmp_path: Path) -> None:
    reference = SparseEncoder(str(make_masked(tmp_path / "plain", "bert")))
    setattr(reference[1], "activation_function", "log1p_relu")  # noqa: B010  # torch declares it as a Tensor
    reference.save_pretrained(str(tmp_path / "sparse"))
    encoder = Encoder(tmp_path / "sparse", dtype="float32")
    assert encoder.kind == "splade"
    expected = reference.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_rows_are_the_nonzero_terms_of_a_text(tmp_path: Path) -> None:
    encoder = Encoder(make_masked(tmp_path, "bert"), dtype="float32", pooling_strategy="SPLADE")
    dense = encoder.encode(TEXTS)
    tasks = [task for task in encoder.prepare(TEXTS) if isinstance(task, PreparedText)]
    for row, result in zip(dense, encoder.forward(tasks), strict=True):
        assert isinstance(result, np.ndarray)
        assert result[:, 0].tolist() == np.flatnonzero(row).tolist()
        assert result[:, 1].tolist() == row[row > 0].tolist()


def test_sparse_and_pooled_vectors_share_a_batch(tmp_path: Path) -> None:
    encoder = Encoder(make_masked(tmp_path, "bert"), dtype="float32", pooling_strategy="SPLADE")
    sparse, pooled = encoder.encode(TEXTS), encoder.encode(TEXTS, pooling_strategy="REDUCE_MEAN", pooling_layer=-1)
    options = EncodeOptions(("REDUCE_MEAN",), (-1,))
    prepared = [*encoder.prepare(TEXTS[:2]), *encoder.prepare(TEXTS[2:], options), *encoder.prepare(TEXTS[2:])]
    results = encoder.forward([task for task in prepared if isinstance(task, PreparedText)])
    for result, row in zip(results[2:4], pooled[2:], strict=True):
        np.testing.assert_allclose(result, row, atol=1e-5)
    for result, row in zip([*results[:2], *results[4:]], sparse, strict=True):
        assert isinstance(result, np.ndarray)
        np.testing.assert_allclose(result[:, 1], row[row > 0], atol=1e-5)


def test_a_long_text_has_the_terms_of_all_its_windows(tmp_path: Path) -> None:
    encoder = Encoder(make_masked(tmp_path, "bert"), dtype="float32", max_seq_len=16, pooling_strategy="SPLADE")
    long_text = "one two three four five six hello world the fox " * 3
    with pytest.warns(UserWarning, match="cut"):
        beginning = encoder.encode([long_text])[0]
    whole = encoder.encode([long_text], long_text="chunk")[0]
    assert (whole >= beginning - 1e-5).all()
    assert (whole > beginning + 1e-3).any()


def test_a_model_without_the_head_is_an_error_at_load_time(tmp_path: Path) -> None:
    make_model(tmp_path, "bert")
    with pytest.raises(ModelError, match="weights are missing"):
        Encoder(tmp_path, pooling_strategy="SPLADE")


def test_a_request_for_splade_is_an_error_for_other_models(demo_model: Path) -> None:
    with pytest.raises(ValueError, match="SPLADE needs a server that was started with"):
        Encoder(demo_model).encode(["a"], pooling_strategy="SPLADE")
