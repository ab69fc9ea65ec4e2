"""Vectors equal those of sentence-transformers on the same folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from sentence_transformers import SentenceTransformer

from tests.support.sentences import sentences


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sentences(1000)


@pytest.fixture(scope="module")
def reference(demo_model: Path, texts: list[str]) -> np.ndarray:
    return SentenceTransformer(str(demo_model), device="cpu").encode(texts)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_float32_equals_sentence_transformers(demo_model: Path, texts: list[str], reference: np.ndarray) -> None:
    rows = Encoder(demo_model, dtype="float32", device="cpu").encode(texts)
    assert rows.dtype == np.float32
    assert np.abs(rows - reference).max() <= 1e-5
    assert cosines(rows, reference).min() >= 0.9999


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_every_vector_in_a_fast_dtype_is_close(
    demo_model: Path, texts: list[str], reference: np.ndarray, dtype: str
) -> None:
    rows = Encoder(demo_model, dtype=dtype, device="cpu").encode(texts)
    assert cosines(rows, reference).min() >= 0.9999


def test_every_vector_in_float16_is_close(demo_model: Path, texts: list[str], reference: np.ndarray) -> None:
    rows = Encoder(demo_model, dtype="float16", device="cpu").encode(texts[:100])
    assert cosines(rows, reference[:100]).min() >= 0.9999


def test_a_vector_does_not_depend_on_other_texts(demo_model: Path, texts: list[str]) -> None:
    encoder = Encoder(demo_model, dtype="float32", device="cpu")
    together = encoder.encode(texts[:40])
    alone = np.concatenate([encoder.encode([text]) for text in texts[:40]])
    assert np.abs(together - alone).max() <= 1e-5


def test_a_tokenized_text_has_the_vector_of_its_string(demo_model: Path) -> None:
    encoder = Encoder(demo_model, dtype="float32", device="cpu")
    from_text, from_tokens = encoder.encode(["hello embedding world", ["hello", "em", "##bed", "##ding", "world"]])
    assert np.abs(from_text - from_tokens).max() <= 1e-6


def test_unknown_tokens_become_the_unknown_token(demo_model: Path) -> None:
    encoder = Encoder(demo_model, device="cpu")
    (task,) = encoder.prepare([["hello", "NoSuchWord"]])
    assert isinstance(task, PreparedText)
    assert encoder.tokens(task.text) == ["[CLS]", "hello", "[UNK]", "[SEP]"]


def test_long_texts_are_cut_to_max_seq_len_and_marked(demo_model: Path) -> None:
    encoder = Encoder(demo_model, device="cpu", max_seq_len=8)
    tasks = encoder.prepare(["one two", "word " * 50, ["word"] * 50])
    short, long, tokens = (task.text for task in tasks if isinstance(task, PreparedText))
    assert (len(short.ids), short.truncated) == (4, False)
    assert (len(long.ids), long.truncated) == (8, True)
    assert tokens == long


def test_original_default_pooling_is_the_mean_over_the_second_last_layer(
    demo_model: Path, texts: list[str]
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = texts[:32]
    rows = Encoder(demo_model, dtype="float32", device="cpu", pooling_strategy="REDUCE_MEAN").encode(texts)
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModel.from_pretrained(demo_model, attn_implementation="eager").eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-2]
    mask = inputs["attention_mask"][..., None]
    expected = ((hidden * mask).sum(1) / (mask.sum(1) + 1e-10)).numpy()
    assert np.abs(rows - expected).max() <= 1e-5


def test_several_layers_are_concatenated_in_the_given_order(demo_model: Path, texts: list[str]) -> None:
    def encode(*layers: int) -> np.ndarray:
        encoder = Encoder(
            demo_model, dtype="float32", device="cpu", pooling_strategy="CLS_TOKEN", pooling_layer=layers
        )
        return encoder.encode(texts[:16])

    both = encode(-1, 0)
    assert both.shape == (16, 768)
    assert np.abs(both - np.concatenate([encode(-1), encode(0)], axis=1)).max() <= 1e-5


def test_a_layer_out_of_range_is_an_error(demo_model: Path) -> None:
    with pytest.raises(ModelError, match=r"pooling_layer must be in -6\.\.5 for this model, got -7"):
        Encoder(demo_model, device="cpu", pooling_layer=[-7])


def test_a_max_seq_len_above_the_positions_is_an_error(demo_model: Path) -> None:
    with pytest.raises(ModelError, match=r"max_seq_len must be in 3\.\.512 for this model, got 513"):
        Encoder(demo_model, device="cpu", max_seq_len=513)


@pytest.mark.parametrize("setting", [{"max_seq_len": "12"}, {"dtype": "float64"}, {"dtype": "x"}, {"device": "x"}])
def test_an_invalid_setting_is_named(demo_model: Path, setting: dict[str, str]) -> None:
    (name,) = setting
    with pytest.raises(ModelError, match=f"^{name} must be .*, got '{setting[name]}'$"):
        Encoder(demo_model, **({"device": "cpu"} | setting))  # type: ignore[arg-type]


def test_a_missing_gpu_is_an_error(demo_model: Path) -> None:
    with pytest.raises(ModelError, match="GPU 99 does not exist"):
        Encoder(demo_model, device="cuda:99")
