"""The encoder gives nearly the same vectors on a CUDA device as in float32 on the CPU. Skipped without CUDA."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.protocol import Text, TextPair
from bert_serving.server.worker.encoder import Encoder

from tests.support.tiny_models import FAMILIES, WORDS, make_classifier, make_masked, make_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PADDED = {"mpnet", "deberta-v2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def texts(count: int, longest: int) -> list[str]:
    rng = random.Random(count)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vectors_on_cuda_equal_those_on_the_cpu(folders: dict[str, Path], family: str, dtype: str) -> None:
    options = {"pooling_strategy": "REDUCE_MEAN", "pooling_layer": [-1]}
    batch = [*texts(100, 60), *texts(3, 400)]
    expected = Encoder(folders[family], device="cpu", dtype="float32", **options).encode(batch)  # type: ignore[arg-type]
    mine = Encoder(folders[family], device="cuda:0", dtype=dtype, **options)  # type: ignore[arg-type]
    assert (mine.padded_because is not None) == (family in PADDED), mine.padded_because
    rows = mine.encode(batch)
    if dtype == "float32":
        assert np.abs(rows - expected).max() <= 1e-5
    cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 0.999
    assert cosine.mean() >= 0.9999


def test_demo_model_in_float16_stays_close_to_float32(demo_model: Path) -> None:
    batch = texts(300, 80)
    expected = Encoder(demo_model, device="cpu", dtype="float32").encode(batch)
    mine = Encoder(demo_model)
    assert (mine.device.type, mine.dtype) == ("cuda", torch.float16)
    assert (mine.encode(batch) * expected).sum(1).min() >= 0.9999


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("flags", [{}, {"mask_cls_sep": True}], ids=str)
def test_options_give_the_same_vectors_as_on_the_cpu(
    folders: dict[str, Path], dtype: str, flags: dict[str, bool]
) -> None:
    batch = ["one two three", "a quick ||| brown fox", "word " * 700]
    cpu = Encoder(folders["bert"], device="cpu", dtype="float32", all_layers=True, **flags)  # type: ignore[arg-type]
    cuda = Encoder(folders["bert"], device="cuda:0", dtype=dtype, all_layers=True, **flags)  # type: ignore[arg-type]
    asked: list[dict[str, object]] = [
        {"pooling_strategy": "REDUCE_MAX", "pooling_layer": [-1, 0]},
        {"pooling_strategy": ["CLS_TOKEN", "WEIGHTED_MEAN"], "normalize": True},
        {"pooling_strategy": "CLS_POOLED"},
        {"pooling_strategy": "NONE"},
        {"long_text": "chunk", "dimensions": 16},
    ]
    for options in asked:
        rows, expected = (each.encode(batch, **options) for each in (cuda, cpu))  # type: ignore[arg-type]
        assert rows.shape == expected.shape
        if dtype == "float32":
            assert np.abs(rows - expected).max() <= 1e-5, options
        rows, expected = (x.reshape(-1, x.shape[-1]) for x in (rows, expected))
        lengths = np.linalg.norm(expected, axis=1)
        assert (np.linalg.norm(rows, axis=1)[lengths == 0] == 0).all(), options  # after the end of a text
        rows, expected = rows[lengths > 0], expected[lengths > 0]
        cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() >= 0.999, options


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_heads_give_the_same_values_as_on_the_cpu(tmp_path: Path, dtype: str) -> None:
    pairs: list[Text] = [TextPair(text="one two", text_pair=text) for text in texts(50, 40)]
    for folder, strategy, batch in (
        (make_classifier(tmp_path / "classifier", "bert", num_labels=3), "LOGITS", pairs),
        (make_masked(tmp_path / "masked", "bert"), "SPLADE", [*texts(50, 40)]),
    ):
        cpu, cuda = (
            Encoder(folder, device=device, dtype=kind, pooling_strategy=strategy)
            for device, kind in (("cpu", "float32"), ("cuda:0", dtype))
        )
        difference = np.abs(cuda.encode(batch) - cpu.encode(batch)).max()
        assert difference <= (1e-4 if dtype == "float32" else 0.1), strategy


def test_out_of_memory_halves_the_micro_batch(folders: dict[str, Path]) -> None:
    batch = texts(3000, 60)
    expected = Encoder(folders["bert"], device="cpu", dtype="float32").encode(batch)
    mine = Encoder(folders["bert"], device="cuda:0", dtype="float32", max_batch_tokens=1 << 20)
    gc.collect()  # encoders of other tests
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (48 << 20)) / total, 0)
    try:
        mine._budget.tokens = 1 << 20
        rows = mine.encode(batch)
        assert mine._budget.tokens < 1 << 20
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert np.abs(rows - expected).max() <= 1e-5
