"""bert-serving-doctor, with real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bert_serving.doctor.cli import main

from tests.support.running_server import free_ports
from tests.support.tiny_models import make_model


def ports() -> list[str]:
    first, second = free_ports(2)
    return ["-port", str(first), "-port_out", str(second)]


def test_a_model_is_loaded_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "bert", "bert")
    options = ["-model_dir", str(model), "-compile", "off", "-num_worker", "2", "-max_seq_len", "40"]
    assert main([*ports(), *options, "-seconds", "0.3", "-json"]) == 0
    captured = capsys.readouterr()
    assert "loading the model" in captured.err
    found = json.loads(captured.out)
    assert found["problems"] == []
    assert found["choices"]["workers"] == 2
    assert found["choices"]["model"] == str(model)
    measured = found["measured"]
    assert (measured["dimension"], measured["max_seq_len"], measured["device"]) == (64, 40, "cpu")
    assert 5 < measured["tokens_per_s"] / measured["texts_per_s"] < 42
    assert measured["one_text"]["max_ms"] >= measured["one_text"]["median_ms"] > 0
    assert measured["one_text"]["calls"] >= 3


def test_without_measuring_no_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ports(), "-seconds", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "a server can start here" in captured.out


def test_a_model_that_is_not_whole_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "bert", "bert")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert main([*ports(), "-model_dir", str(model), "-seconds", "0.1"]) == 1
    assert "problem" in capsys.readouterr().out
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
