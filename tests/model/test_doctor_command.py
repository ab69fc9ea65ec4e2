"""bert-serving-doctor, with real models."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bert_serving.doctor.cli import main

from tests.support.code_blocks import blocks_run_by
from tests.support.running_server import free_ports
from tests.support.tensor_bundles import GOOGLE_BERT
from tests.support.tiny_models import make_model

#: The commands of the pages, the shorter one first.
SHOWN = sorted((words for block in blocks_run_by(__file__) for words in block.commands), key=len)
ALONE, WITH_A_MODEL = (words[1:] for words in SHOWN if words[0] == "bert-serving-doctor")


def ports() -> list[str]:
    first, second = free_ports(2)
    return ["-port", str(first), "-port_out", str(second)]


def test_a_model_is_loaded_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "bert", "bert")
    shown = [word.replace("/path/to/model", str(model)) for word in WITH_A_MODEL]
    (http_port,) = free_ports(1)
    options = ["-http_port", str(http_port), "-compile", "off", "-num_worker", "2", "-max_seq_len", "40"]
    assert main([*shown, *ports(), *options, "-seconds", "0.3", "-json"]) == 0
    captured = capsys.readouterr()
    assert "loading the model" in captured.err
    found = json.loads(captured.out)
    assert found["problems"] == []
    assert found["folder_is_whole"]
    assert found["choices"]["workers"] == 2
    assert found["choices"]["model"] == str(model)
    measured = found["measured"]
    assert (measured["dimension"], measured["max_seq_len"], measured["device"]) == (64, 40, "cpu")
    assert 5 < measured["tokens_per_s"] / measured["texts_per_s"] < 42
    assert measured["one_text"]["max_ms"] >= measured["one_text"]["median_ms"] > 0
    assert measured["one_text"]["calls"] >= 3


def test_without_measuring_no_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ALONE, *ports(), "-seconds", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "folder      whole" in captured.out
    assert "the model was not loaded (-seconds 0)" in " ".join(captured.out.split())


def cut_weights(model: Path) -> str:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return "model.safetensors are damaged or cut off"


def lose_weights(model: Path) -> str:
    (model / "model.safetensors").unlink()
    return "model_dir has no weights"


def lose_a_shard(model: Path) -> str:
    (model / "model.safetensors").rename(model / "first.safetensors")
    files = {"a": "first.safetensors", "b": "second.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return "lists second.safetensors, which is not in"


def clone_without_lfs(model: Path) -> str:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    return "git lfs pull"


def cut_pickled_weights(model: Path) -> str:
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1000)}, model / "pytorch_model.bin")
    weights = (model / "pytorch_model.bin").read_bytes()
    (model / "pytorch_model.bin").write_bytes(weights[:-1000])
    return "this is no file of torch.save"


def cut_tokenizer(model: Path) -> str:
    (model / "tokenizer.json").write_text('{"version": ')
    return "tokenizer.json"


def lose_dense_weights(model: Path) -> str:
    modules = ["Transformer", "Pooling", "Dense"]
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": kind * bool(i)} for i, kind in
               enumerate(modules)]  # fmt: skip
    (model / "modules.json").write_text(json.dumps(entries))
    for kind in modules[1:]:
        (model / kind).mkdir()
        (model / kind / "config.json").write_text("{}")
    return "there are no weights (model.safetensors or pytorch_model.bin) in"


@pytest.mark.parametrize(
    "damage",
    [
        cut_weights,
        lose_weights,
        lose_a_shard,
        clone_without_lfs,
        cut_pickled_weights,
        cut_tokenizer,
        lose_dense_weights,
    ],
)
def test_a_folder_that_is_not_whole_is_a_problem(
    tmp_path: Path, damage: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "bert", "bert")
    expected = damage(model)
    assert main([*ports(), "-model_dir", str(model), "-seconds", "0", "-json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["folder_is_whole"]
    (problem,) = found["problems"]
    assert expected in problem


@pytest.mark.parametrize("safe", [True, False])
def test_pickled_weights_are_whole(tmp_path: Path, safe: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "bert", "bert")
    weights = safetensors.torch.load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin", _use_new_zipfile_serialization=safe)
    assert main([*ports(), "-model_dir", str(model), "-seconds", "0"]) == 0
    assert "folder      whole" in capsys.readouterr().out


def test_a_google_checkpoint_needs_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(GOOGLE_BERT, tmp_path / "google"))
    assert main([*ports(), "-model_dir", str(model), "-seconds", "0"]) == 0
    assert "folder      whole" in capsys.readouterr().out
    (model / "bert_model.ckpt.data-00000-of-00001").unlink()
    assert main([*ports(), "-model_dir", str(model), "-seconds", "0"]) == 1
    assert "folder      not whole" in capsys.readouterr().out


FAILING_MODEL = """
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

class FailingConfig(BertConfig):
    model_type = "broken"

class FailingModel(BertModel):
    config_class = FailingConfig

    def forward(self, *args, **options):
        raise KeyError("a fault") if self.config.is_faulty else torch.OutOfMemoryError("CUDA out of memory.")

AutoConfig.register("broken", FailingConfig, exist_ok=True)
AutoModel.register(FailingConfig, FailingModel, exist_ok=True)
"""


@pytest.mark.parametrize(
    ("is_faulty", "expected"),
    [(False, "OutOfMemoryError: CUDA out of memory.: the memory is used up"), (True, "KeyError: 'a fault'; with")],
)
def test_a_model_that_fails_is_a_problem_in_one_line(
    tmp_path: Path, is_faulty: bool, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "bert", "bert")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "broken", "is_faulty": is_faulty}))
    module = tmp_path / "failing_model.py"
    module.write_text(FAILING_MODEL)
    options = ["-model_dir", str(model), "-model_module", str(module), "-compile", "off", "-dtype", "float32"]
    assert main([*ports(), *options, "-seconds", "0.1", "-json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "bert-serving-doctor: loading the model\n"
    found = json.loads(captured.out)
    (problem,) = found["problems"]
    assert expected in problem
    assert found["folder_is_whole"]
    assert found["choices"]["workers"] == 1


def test_verbose_shows_where_an_examination_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.NOTSET, "bert_serving.doctor")  # also restores the level after the test
    words = [*ports(), "-model_dir", str(tmp_path / "none"), "-seconds", "0"]
    assert main(words) == 1
    assert caplog.records == []
    assert main([*words, "-verbose"]) == 1
    (record,) = caplog.records
    assert record.exc_info


def test_a_model_that_is_not_there_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ports(), "-model_dir", str(tmp_path / "none"), "-seconds", "0"]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().out.replace("\n" + " " * 12, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["-seconds", "-1"], "seconds must be in 0..3600, got -1"), (["-port", "0"], "port"), (["-nope"], "-nope")],
)
def test_a_wrong_option_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    line = capsys.readouterr().err
    assert line.startswith("bert-serving-doctor: error: ")
    assert message in line
