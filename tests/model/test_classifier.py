"""A classification head gives the probabilities of Transformers' model for sequence classification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.protocol import Text, TextPair
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.sentences import sentences
from tests.support.tiny_models import FAMILIES, make_classifier, make_model

TEXTS = sentences(40)
WITH_HEAD = [family for family in FAMILIES if family != "nomic_bert"]


def reference(folder: Path) -> torch.Tensor:
    """Return the logits that Transformers computes: padded, in float32, with eager attention."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def encode(folder: Path, strategy: str, dtype: str = "float32", **options: object) -> np.ndarray:
    return Encoder(folder, device="cpu", dtype=dtype, pooling_strategy=strategy, **options).encode(TEXTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", WITH_HEAD)
def test_classification_is_the_softmax_of_the_models_own_logits(tmp_path: Path, family: str) -> None:
    folder = make_classifier(tmp_path, family, num_labels=3)
    expected = torch.softmax(reference(folder), dim=1).numpy()
    rows = encode(folder, "CLASSIFICATION")
    assert rows.shape == (40, 3)
    assert np.abs(rows - expected).max() <= 1e-5
    assert np.abs(encode(folder, "CLASSIFICATION", "bfloat16") - expected).max() <= 0.02


@pytest.mark.parametrize("family", WITH_HEAD)
def test_regression_is_the_sigmoid_of_the_single_logit(tmp_path: Path, family: str) -> None:
    folder = make_classifier(tmp_path, family, num_labels=1)
    expected = torch.sigmoid(reference(folder)).numpy()
    assert np.abs(encode(folder, "REGRESSION") - expected).max() <= 1e-5


def test_large_logits_give_probabilities_without_nan(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "bert", num_labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.bias.data = torch.tensor([3000.0, 0.0, -3000.0])
    model.save_pretrained(folder)
    assert np.abs(encode(folder, "CLASSIFICATION") - [1.0, 0.0, 0.0]).max() <= 1e-6


def test_labels_are_named_as_in_the_config(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "bert", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    encoder = Encoder(folder, device="cpu", pooling_strategy="CLASSIFICATION")
    assert encoder.labels == ("bad", "good")
    assert encoder.encode(["a"], pooling_strategy="CLS_TOKEN", pooling_layer=-1).shape == (1, 64)


def test_head_and_labels_are_read_from_a_tuned_folder(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "bert")
    tuned = make_classifier(tmp_path / "tuned", "bert", num_labels=3)
    expected = encode(tuned, "CLASSIFICATION")
    rows = encode(base, "CLASSIFICATION", tuned_model_dir=tuned)
    assert np.abs(rows - expected).max() <= 1e-6
    encoder = Encoder(base, tuned_model_dir=tuned, device="cpu")
    assert (encoder.kind, encoder.labels) == ("classifier", ("LABEL_0", "LABEL_1", "LABEL_2"))
    (tuned / "config.json").unlink()  # without the config, num_labels is needed
    assert np.abs(encode(base, "CLASSIFICATION", tuned_model_dir=tuned, num_labels=3) - expected).max() <= 1e-6


def test_a_missing_head_is_an_error_at_load_time(tmp_path: Path) -> None:
    plain = make_model(tmp_path / "plain", "bert")
    with pytest.raises(ModelError, match=r"weights are missing .*: classifier\.bias and 1 more"):
        encode(plain, "CLASSIFICATION")
    three = make_classifier(tmp_path / "three", "bert", num_labels=3)
    with pytest.raises(ModelError, match=r"num_labels must be 3, as in .*, got 2"):
        encode(three, "CLASSIFICATION", num_labels=2)
    with pytest.raises(ModelError, match=r"REGRESSION needs .* with one label"):
        encode(three, "REGRESSION")


def test_a_classifier_loads_its_head_with_any_pooling_strategy(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "bert", num_labels=3)
    encoder = Encoder(folder, device="cpu", dtype="float32")
    assert encoder.kind == "classifier"
    logits = reference(folder)
    assert np.abs(encoder.encode(TEXTS, pooling_strategy="LOGITS") - logits.numpy()).max() <= 1e-5
    probabilities = encoder.encode(TEXTS, pooling_strategy="CLASSIFICATION")
    assert np.abs(probabilities - torch.softmax(logits, dim=1).numpy()).max() <= 1e-5
    assert encoder.encode(["a"]).shape == (1, 64)


def test_logits_of_a_model_without_a_head_are_an_error(tmp_path: Path) -> None:
    encoder = Encoder(make_model(tmp_path, "bert"), device="cpu", dtype="float32")
    assert encoder.kind == "embedding"
    with pytest.raises(ValueError, match="LOGITS needs a model for sequence classification"):
        encoder.encode(["a"], pooling_strategy="LOGITS")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_pair_scores_equal_the_cross_encoder_of_sentence_transformers(tmp_path: Path, family: str) -> None:
    folder = make_classifier(tmp_path, family, num_labels=1)
    pairs = [(TEXTS[0], text) for text in TEXTS[1:]] + [
        ("a ||| b", "word " * 600),
        ("word " * 600, "a"),
        ("a", " "),
    ]
    expected = CrossEncoder(str(folder), max_length=512, device="cpu").predict(pairs)
    encoder = Encoder(folder, device="cpu", dtype="float32")
    assert encoder.kind == "reranker"
    texts: list[Text] = [TextPair(text=first, text_pair=second) for first, second in pairs]
    with pytest.warns(UserWarning, match="2 texts are longer"):
        scores = encoder.encode(texts, pooling_strategy="REGRESSION")
    assert np.abs(scores[:, 0] - expected).max() <= 1e-5
