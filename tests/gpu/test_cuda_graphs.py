"""On a GPU, CUDA graphs give the vectors of the passes that they replace. Skipped without CUDA."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias
from unittest import mock

import numpy as np
import pytest
import torch
from bert_serving.server.worker import cuda_graphs
from bert_serving.server.worker.encoder import Encoder

from tests.support.tiny_models import FAMILIES, WORDS, make_classifier, make_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PADDED = {"mpnet", "deberta-v2"}


Run: TypeAlias = "Callable[[], dict[int, torch.Tensor]]"


def row_of(num_tokens: int) -> list[str]:
    """Return texts that have this many tokens together, 3 to 62 each."""
    lengths = [60] * (num_tokens // 60)
    rest = num_tokens - sum(lengths)
    if rest < 3 and lengths:
        lengths[-1] += rest
    else:
        lengths.append(rest)
    return [of_tokens(length, i) for i, length in enumerate(lengths)]


def of_tokens(num_tokens: int, seed: int = 0) -> str:
    """Return a text of this many tokens, special tokens included; each word is a token."""
    return " ".join(random.Random(seed + num_tokens).choices(WORDS, k=num_tokens - 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def both(folder: Path, **options: object) -> tuple[Encoder, Encoder]:
    """Return two encoders of a model, with CUDA graphs and without."""
    graphs, plain = (Encoder(folder, device="cuda:0", compile=value, **options) for value in ("auto", "off"))  # type: ignore[arg-type]
    assert (graphs.forward_kind, plain.forward_kind) == ("cuda-graphs", "packed")
    return graphs, plain


def graphs_of(encoder: Encoder) -> cuda_graphs.CudaGraphs:
    graphs = encoder._loaded.transformer._graphs
    assert graphs is not None
    return graphs


def smallest_cosine(rows: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((rows * expected).sum(1) / norms).min())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in PADDED])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_size_gives_the_vectors_of_the_plain_pass(folders: dict[str, Path], family: str, dtype: str) -> None:
    graphs, plain = both(folders[family], dtype=dtype, pooling_layer=[-1])
    recorded = graphs_of(graphs)
    for size in recorded.sizes:
        for num_tokens in (size - 1, size, size + 1):
            texts = row_of(num_tokens)
            with mock.patch.object(recorded, "run", wraps=recorded.run) as run:
                rows = graphs.encode(texts)
            assert smallest_cosine(rows, plain.encode(texts)) >= 0.9999, num_tokens
            if num_tokens <= size:
                assert [call.args[0] for call in run.call_args_list] == [size], num_tokens
    longest = [of_tokens(graphs.max_seq_len)]
    assert smallest_cosine(graphs.encode(longest), plain.encode(longest)) >= 0.9999
    alone = np.concatenate([graphs.encode([text]) for text in texts])
    assert smallest_cosine(graphs.encode(texts), alone) >= 0.9999


def test_many_short_texts_take_a_larger_graph_or_none(folders: dict[str, Path]) -> None:
    graphs, plain = both(folders["bert"], dtype="float16", pooling_layer=[-1])
    for count in (1, 4, 5, 100, 512, 513, 3000):
        texts = ["a"] * count
        assert smallest_cosine(graphs.encode(texts), plain.encode(texts)) >= 0.9999, count


def test_pairs_token_vectors_and_other_layers(folders: dict[str, Path]) -> None:
    graphs, plain = both(folders["bert"], dtype="float16", pooling_layer=[-1], all_layers=True)
    texts = ["one two ||| three", "a quick ||| brown fox", of_tokens(40)]
    asked: list[dict[str, object]] = [
        {},
        {"pooling_strategy": "NONE"},
        {"pooling_strategy": ["CLS_TOKEN", "REDUCE_MAX"], "normalize": True},
        {"pooling_layer": [-2, 0]},
        {"pooling_strategy": "CLS_POOLED"},
    ]
    for options in asked:
        rows = graphs.encode(texts, **options)  # type: ignore[arg-type]
        expected = plain.encode(texts, **options)  # type: ignore[arg-type]
        assert np.abs(np.subtract(rows, expected)).max() <= 0.02 * np.abs(expected).max(), options


def test_a_head_reads_the_states_of_a_graph(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "bert", num_labels=3)
    graphs, plain = both(folder, dtype="float16", pooling_strategy="LOGITS")
    texts = ["one two ||| " + of_tokens(n) for n in range(3, 40)]
    assert np.abs(graphs.encode(texts) - plain.encode(texts)).max() <= 0.01


def test_threads_that_encode_at_the_same_time_get_their_own_vectors(folders: dict[str, Path]) -> None:
    graphs, plain = both(folders["bert"], dtype="float16", pooling_layer=[-1])
    texts = [of_tokens(n) for n in range(3, 103)]
    expected = plain.encode(texts)
    with ThreadPoolExecutor(8) as threads:
        rows = np.concatenate(list(threads.map(lambda text: graphs.encode([text]), texts * 5)))
    assert smallest_cosine(rows, np.tile(expected, (5, 1))) >= 0.9999


def test_two_encoders_have_graphs_of_their_own(folders: dict[str, Path]) -> None:
    texts = row_of(100)
    pairs = [both(folders[family], dtype="float16", pooling_layer=[-1]) for family in ("bert", "roberta")]
    for graphs, plain in [*pairs, *pairs]:
        assert smallest_cosine(graphs.encode(texts), plain.encode(texts)) >= 0.9999


def test_what_cannot_be_recorded_runs_as_before(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"dtype": "float32"}, {"mask_cls_sep": True}, {"compile": "off"}):
        assert Encoder(folders["bert"], device="cuda:0", **options).forward_kind == "packed"  # type: ignore[arg-type]
    assert Encoder(folders["mpnet"], device="cuda:0").forward_kind == "padded"
    record = cuda_graphs.Recorder.record

    def waits(recorder: cuda_graphs.Recorder, run: Run) -> cuda_graphs.Recording:
        return record(recorder, lambda: {layer: x * x.isfinite().all().item() for layer, x in run().items()})

    expected = Encoder(folders["bert"], device="cuda:0", compile="off").encode(["one two"])
    monkeypatch.setattr(cuda_graphs.Recorder, "record", waits)
    mine = Encoder(folders["bert"], device="cuda:0")
    assert mine.forward_kind == "packed"
    assert smallest_cosine(mine.encode(["one two"]), expected) >= 0.9999
