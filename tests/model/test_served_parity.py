"""The parity of an encoder is the smallest cosine of what it serves, held against plain Transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.parity import PROBES
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.tiny_models import make_classifier, make_masked, make_model

Array = np.ndarray
NEAR = 1e-6  # rounding in float32


def load(folder: Path, dtype: str = "bfloat16", **options: object) -> Encoder:
    """Return an encoder whose forward passes have as many tokens as those of the check: that changes rounding."""
    return Encoder(folder, device="cpu", dtype=dtype, max_batch_tokens=512, **options)  # type: ignore[arg-type]


def run(folder: Path, loader: type, rows_of: Callable[[nn.Module, object], torch.Tensor]) -> Array:
    """Return the rows (N, D) of all probes, each computed alone by Transformers, in float32.

    rows_of: from a model and its output to the rows of one text, (n, D).
    """
    model = loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()  # type: ignore[attr-defined]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for text in PROBES:
            inputs = tokenizer(*text.split(" ||| "), truncation=True, max_length=512, return_tensors="pt")
            rows.append(rows_of(model, model(**inputs, output_hidden_states=True)))
    return torch.cat(rows).double().numpy()


def worst_cosine(rows: Array, expected: Array) -> float:
    assert rows.shape == expected.shape
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((rows * expected).sum(1) / norms).min())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), "bert", num_hidden_layers=4)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_classifier(tmp_path_factory.mktemp("classifier"), "bert", num_labels=3)
    logits = run(folder, AutoModelForSequenceClassification, lambda model, out: out.logits)  # type: ignore[attr-defined]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    # Large logits around 0, so that rounding shows in the probabilities.
    head = model.classifier
    head.weight.data *= 20
    head.bias.data = 20 * (head.bias - torch.from_numpy(logits.mean(0)).float())
    model.save_pretrained(folder)
    return folder


SERVED: dict[str, Callable[[nn.Module, object], torch.Tensor]] = {
    "REDUCE_MEAN": lambda model, out: out.hidden_states[-2].mean(1),  # type: ignore[attr-defined]
    "CLS_TOKEN": lambda model, out: out.hidden_states[-2][:, 0],  # type: ignore[attr-defined]
    "NONE": lambda model, out: out.hidden_states[-2][0],  # type: ignore[attr-defined]
    "CLS_POOLED": lambda model, out: out.pooler_output,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("strategy", SERVED)
def test_it_is_the_worst_cosine_of_the_strategy_in_force(plain: Path, strategy: str) -> None:
    mine = load(plain, pooling_strategy=strategy)
    rows = mine.encode(PROBES)
    if strategy == "NONE":
        rows = np.concatenate([each.vectors for each in mine.encode_tokens(PROBES)])
    worst = worst_cosine(rows.astype(np.float64), run(plain, AutoModel, SERVED[strategy]))
    assert worst < 1 - 2 * NEAR
    assert mine.parity == pytest.approx(worst, abs=NEAR)


def test_layers_and_several_strategies_are_those_in_force(plain: Path) -> None:
    mine = load(plain, pooling_strategy=["CLS_TOKEN", "REDUCE_MAX"], pooling_layer=[-1, 0])

    def rows_of(model: nn.Module, out: object) -> torch.Tensor:
        states = out.hidden_states  # type: ignore[attr-defined]
        tokens = torch.cat([states[-1], states[1]], dim=2)
        return torch.cat([tokens[:, 0], tokens.amax(1)], dim=1)

    worst = worst_cosine(mine.encode(PROBES).astype(np.float64), run(plain, AutoModel, rows_of))
    assert mine.parity == pytest.approx(worst, abs=NEAR)


@pytest.mark.parametrize("strategy", ["auto", "CLASSIFICATION"])
def test_a_classification_head_counts_even_if_it_is_not_the_default(
    classifier: Path, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        mine = load(classifier, pooling_strategy=strategy)
    expected = run(classifier, AutoModelForSequenceClassification, lambda model, out: out.logits.softmax(1))  # type: ignore[attr-defined]
    rows = mine.encode(PROBES, pooling_strategy="CLASSIFICATION")
    worst, difference = worst_cosine(rows.astype(np.float64), expected), np.abs(rows - expected).max()
    assert worst < 1 - 100 * NEAR
    assert mine.parity <= worst + NEAR
    logged = re.search(r"pooling=CLASSIFICATION cosine=(\S+) difference=(\S+)", caplog.text)
    assert logged is not None
    assert float(logged[1]) == pytest.approx(worst, abs=NEAR)
    assert float(logged[2]) == pytest.approx(difference, rel=0.06)


def test_scores_of_a_reranker_are_compared_as_one_row(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "bert", num_labels=1)
    mine = load(folder, pooling_strategy="LOGITS")
    expected = run(folder, AutoModelForSequenceClassification, lambda model, out: out.logits)  # type: ignore[attr-defined]
    worst = worst_cosine(mine.encode(PROBES).astype(np.float64).T, expected.T)
    assert mine.parity == pytest.approx(worst, abs=NEAR)
    assert worst < 1


def test_weights_of_terms_are_compared(tmp_path: Path) -> None:
    folder = make_masked(tmp_path, "bert")
    mine = load(folder, pooling_strategy="SPLADE")
    expected = run(folder, AutoModelForMaskedLM, lambda model, out: out.logits.amax(1).relu().log1p())  # type: ignore[attr-defined]
    worst = worst_cosine(mine.encode(PROBES).astype(np.float64), expected)
    assert worst < 1 - 2 * NEAR
    assert mine.parity == pytest.approx(worst, abs=NEAR)


def test_dense_layers_and_prompt_of_the_folder_are_included(plain: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = [Transformer(str(plain)), Pooling(64), Dense(64, 8)]
    reference = SentenceTransformer(
        modules=modules, prompts={"query": "one two three "}, default_prompt_name="query", device="cpu"
    )
    reference.save(str(tmp_path))
    mine = load(tmp_path)
    texts = [text for text in PROBES if " ||| " not in text]
    worst = worst_cosine(mine.encode(texts).astype(np.float64), reference.encode(texts).astype(np.float64))
    assert mine.parity <= worst + NEAR
    worst = worst_cosine(mine.encode(PROBES), load(tmp_path, "float32").encode(PROBES))
    assert mine.parity == pytest.approx(worst, abs=NEAR)


def test_hidden_special_tokens_are_rows_of_zeros_and_do_not_count(plain: Path) -> None:
    mine = load(plain, pooling_strategy="NONE", mask_cls_sep=True)
    assert 0.99 < mine.parity < 1 - 2 * NEAR


@pytest.mark.parametrize("strategy", ["auto", "CLASSIFICATION"])
def test_a_head_for_which_the_dtype_is_too_coarse_is_refused(
    classifier: Path, tmp_path: Path, strategy: str
) -> None:
    """The head multiplies the difference of two outputs of the pooler, which are equal in bfloat16."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    pooler = model.bert.pooler.dense
    pooler.weight.data[1] = pooler.weight[0] * 1.001
    pooler.bias.data[1] = pooler.bias[0]
    model.classifier.weight.data.zero_()
    model.classifier.weight.data[:, :2] = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0, 0]])
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    said = r"bfloat16 is too coarse for CLASSIFICATION of this model \(cosine 0\.\d+\): use -dtype float32$"
    with pytest.raises(ModelError, match=said):
        load(tmp_path, pooling_strategy=strategy)
    assert load(tmp_path, "float32", pooling_strategy=strategy).parity > 0.999
