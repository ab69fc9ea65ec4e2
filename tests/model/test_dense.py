"""A sentence-transformers folder with modules after the pooling gives the vectors of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

from tests.support.sentences import sentences
from tests.support.tiny_models import make_model

TEXTS = sentences(40)

HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "tanh": lambda: [dense(64, 32)],
    "identity": lambda: [dense(64, 96, activation_function=nn.Identity())],
    "gelu": lambda: [dense(64, 64, activation_function=nn.GELU())],
    "activation with a weight": lambda: [dense(64, 16, activation_function=nn.PReLU(init=0.7))],
    "no bias": lambda: [dense(64, 32, bias=False)],
    "two": lambda: [dense(64, 128, activation_function=nn.GELU()), dense(128, 24)],
    "then normalized": lambda: [dense(64, 32), Normalize()],
    "normalized before": lambda: [Normalize(), dense(64, 32)],
    "residual": lambda: [dense(64, 64, use_residual=True)],
    "mapped residual": lambda: [dense(64, 32, use_residual=True)],
}


def dense(in_features: int, out_features: int, **options: Any) -> Dense:
    torch.manual_seed(in_features + out_features)
    return Dense(in_features, out_features, **options)


def save(folder: Path, body: Path, *head: nn.Module) -> SentenceTransformer:
    model = SentenceTransformer(modules=[Transformer(str(body)), Pooling(64), *head], device="cpu")
    model.save(str(folder))
    return model


def load(folder: Path, **options: Any) -> Encoder:
    return Encoder(folder, device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), "bert")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """Return a model folder with one Dense layer, from 64 to 32 components, in 2_Dense."""
    save(tmp_path, plain, dense(64, 32))
    return tmp_path


def change_config(folder: Path, **change: object) -> None:
    path = folder / "2_Dense/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("name", HEADS)
def test_head_gives_the_vectors_of_sentence_transformers(plain: Path, tmp_path: Path, name: str) -> None:
    expected = save(tmp_path, plain, *HEADS[name]()).encode(TEXTS)
    rows = load(tmp_path).encode(TEXTS)
    assert rows.shape == expected.shape
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).max() <= 1e-5


def test_weights_in_a_pickle_are_read(folder: Path) -> None:
    expected = load(folder).encode(TEXTS)
    weights = folder / "2_Dense/model.safetensors"
    torch.save(load_file(weights), folder / "2_Dense/pytorch_model.bin")
    weights.unlink()
    assert np.abs(load(folder).encode(TEXTS) - expected).max() == 0


def test_pooling_given_by_the_user_skips_the_dense_layers(folder: Path) -> None:
    assert load(folder).dimension == 32
    assert load(folder, pooling_strategy="REDUCE_MEAN", pooling_layer=[-1]).dimension == 64


def test_a_pickle_with_other_objects_than_weights_is_refused(folder: Path) -> None:
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save({"linear.weight": Path("x")}, folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot read .*pytorch_model\.bin"):
        load(folder)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"linear.weight": (32, 64)}, r"missing in .*2_Dense: linear\.bias"),
        (
            {"linear.weight": (32, 64), "linear.bias": (32,), "other": (1,)},
            "not in its config in .*2_Dense: other",
        ),
        ({"linear.weight": (64, 32), "linear.bias": (32,)}, r"linear\.weight .*\(32, 64\), got \(64, 32\)"),
        ({"linear.weight": (32, 64), "linear.bias": (1,)}, r"linear\.bias .*\(32,\), got \(1,\)"),
        (None, "Dense has no weights"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder: Path, weights: dict[str, Any] | None, said: str) -> None:
    path = folder / "2_Dense/model.safetensors"
    path.unlink()
    if weights is not None:
        save_file({name: torch.zeros(shape) for name, shape in weights.items()}, path)
    with pytest.raises(ModelError, match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.print",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.activation.NoSuch",
        "torch.nn.modules.activation.torch.hub.load",
        "torch.nn.modules.activation.MultiheadAttention",
        "torch.nn.Tanh",
        "Tanh",
        "",
        None,
    ],
)
def test_only_activations_of_torch_are_accepted(folder: Path, name: str | None) -> None:
    change_config(folder, activation_function=name)
    with pytest.raises(ModelError, match="activation_function must be a class of"):
        load(folder)


def test_default_activation_is_tanh(folder: Path) -> None:
    expected = load(folder).encode(TEXTS)
    path = folder / "2_Dense/config.json"
    config = json.loads(path.read_text())
    del config["activation_function"]
    path.write_text(json.dumps(config))
    assert np.abs(load(folder).encode(TEXTS) - expected).max() == 0


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, None])
def test_an_invalid_size_is_refused(folder: Path, value: object) -> None:
    change_config(folder, out_features=value)
    with pytest.raises(ModelError, match="out_features must be a whole number from 1"):
        load(folder)


def test_dense_layers_that_do_not_fit_the_pooling_are_refused(plain: Path, tmp_path: Path) -> None:
    save(tmp_path, plain, dense(65, 32))
    with pytest.raises(ModelError, match="in_features of Dense must be 64, the width of its input, got 65"):
        load(tmp_path)
