"""Two models share a fingerprint if they compute the same vectors, and only then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bert_serving.server.worker.encoder import Encoder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from tests.support.encoders import shared_encoder
from tests.support.tiny_models import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a dense layer and prompts."""
    plain = make_model(tmp_path_factory.mktemp("plain"), "bert")
    folder = tmp_path_factory.mktemp("model")
    modules = [Transformer(str(plain)), Pooling(64), Dense(64, 32)]
    SentenceTransformer(modules=modules, device="cpu", prompts={"query": "fox "}).save(str(folder))
    return folder


def fingerprint(folder: Path, **options: object) -> str:
    return shared_encoder(folder, device="cpu", **options).fingerprint


def test_the_same_model_in_another_folder_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert fingerprint(folder) == fingerprint(tmp_path)
    assert len(fingerprint(folder)) == 16


def test_the_number_format_of_the_forward_pass_does_not_change_it(folder: Path) -> None:
    assert fingerprint(folder, dtype="float32") == fingerprint(folder, dtype="bfloat16")


def test_the_limit_of_the_model_and_the_same_number_are_the_same_limit(folder: Path) -> None:
    # The server gives the number, and an Encoder by default nothing.
    limit = shared_encoder(folder, device="cpu").max_seq_len
    assert fingerprint(folder, max_seq_len=limit) == fingerprint(folder)
    assert fingerprint(folder, max_seq_len=limit - 1) != fingerprint(folder)


def _change_weights(path: Path) -> None:
    weights = load_file(path)
    name = next(name for name, weight in weights.items() if weight.is_floating_point() and weight.numel() > 1)
    weights[name].view(-1)[-1] += 1
    save_file(weights, path, metadata={"format": "pt"})


def _replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: _change_weights(folder / "model.safetensors"),
        lambda folder: _change_weights(folder / "2_Dense" / "model.safetensors"),
        lambda folder: _replace_in(folder / "config.json", '"gelu"', '"relu"'),
        lambda folder: _replace_in(folder / "1_Pooling" / "config.json", '"mean"', '"max"'),
        lambda folder: _replace_in(folder / "config_sentence_transformers.json", '"fox "', '"dog "'),
        lambda folder: _replace_in(folder / "tokenizer.json", '"lowercase": true', '"lowercase": false'),
    ],
    ids=["weights", "dense", "config", "pooling", "prompt", "tokenizer"],
)
def test_any_change_gives_another_fingerprint(
    folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    assert Encoder(tmp_path, device="cpu").fingerprint != fingerprint(folder)


def test_a_replaced_folder_is_not_read_again_in_float32(tmp_path: Path) -> None:
    make_model(tmp_path, "bert", poison="lazy")
    encoder = Encoder(tmp_path, device="cpu", dtype="bfloat16")
    _change_weights(tmp_path / "model.safetensors")
    with pytest.raises(Exception, match="have changed"):
        encoder.encode(["lazy"])
    assert torch.isfinite(torch.from_numpy(encoder.encode(["dog"]))).all()
