"""Every family of models gives the float32 vectors of Transformers, packed if the family allows it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.server.worker.encoder import Encoder
from transformers import AutoModel, AutoTokenizer

from tests.support.tiny_models import FAMILIES, WORDS, make_model

PADDED = {"mpnet", "deberta-v2"}  # not packed: their attention depends on the distance between two tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def texts(count: int, longest: int) -> list[str]:
    """Return texts of 1 to `longest` words, with uniformly random lengths."""
    rng = random.Random(count)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def reference(folder: Path, batch: list[str], *, max_length: int = 512) -> np.ndarray:
    """Return the mean of the last layer as Transformers computes it: padded, in float32, with eager attention."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    inputs = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


def encoder(folder: Path, **options: object) -> Encoder:
    options = {
        "device": "cpu",
        "dtype": "float32",
        "pooling_strategy": "REDUCE_MEAN",
        "pooling_layer": [-1],
    } | options
    return Encoder(folder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_equals_padded_transformers(
    folders: dict[str, Path], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch = [*texts(60, 40), *texts(3, 300)]
    mine = encoder(folders[family])
    assert (mine.padded_because is not None) == (family in PADDED), mine.padded_because
    said = [record.getMessage() for record in caplog.records if "runs padded" in record.getMessage()]
    assert said == [f"this model runs padded, which is slower: {mine.padded_because}"] * (family in PADDED)
    padding_before = mine.num_padding
    assert np.abs(mine.encode(batch) - reference(folders[family], batch)).max() <= 1e-5
    assert (mine.num_padding > padding_before) == (family in PADDED)
    assert mine.parity > 0.99999


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(folders: dict[str, Path], family: str, dtype: str) -> None:
    batch = texts(100, 60)
    rows, expected = encoder(folders[family], dtype=dtype).encode(batch), reference(folders[family], batch)
    cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 0.999
    assert cosine.mean() >= 0.9999


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_read_up_to_the_full_length(folders: dict[str, Path], family: str) -> None:
    batch = ["word " * 700, "a"]
    mine = encoder(folders[family])
    assert mine.max_seq_len == 512
    assert np.abs(mine.encode(batch) - reference(folders[family], batch)).max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lower_layer_equals_that_of_the_whole_model(folders: dict[str, Path], family: str) -> None:
    """The encoder does not load the layers above the pooled one. This must not change the vectors."""
    batch = texts(20, 30)
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    model = AutoModel.from_pretrained(folders[family], attn_implementation="eager").eval()
    inputs = tokenizer(batch, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[2]
    mask = inputs["attention_mask"][..., None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert np.abs(encoder(folders[family], pooling_layer=[-2]).encode(batch) - expected).max() <= 1e-5


def test_layers_above_the_pooled_one_are_not_loaded(folders: dict[str, Path]) -> None:
    shallow = encoder(folders["bert"], pooling_layer=[0])
    assert shallow._loaded.transformer.num_layers == 1
