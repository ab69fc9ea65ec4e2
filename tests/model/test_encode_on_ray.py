"""bert-serving-encode lets the machines of a Ray cluster compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from bert_serving.server import Encoder
from bert_serving.server.cli import encode
from bert_serving.server.files import on_ray

from tests.support.file_runs import wait_for_rows
from tests.support.sentences import sentences
from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S

_WINDOW = 2048  # as many texts as an encoder gets at once


def test_texts_are_the_encoder_s_bit_for_bit_after_a_kill_half_way(tmp_path: Path) -> None:
    texts = [" ".join([*text.split()[: i % 9], str(i)]) for i, text in enumerate(sentences(6 * _WINDOW))]
    model = make_model(tmp_path / "bert", "bert")
    (tmp_path / "x.txt").write_text("\n".join(texts))
    code = "import sys; from bert_serving.server.cli import encode; sys.exit(encode())"
    options = ["-model_dir", str(model), "-dtype", "float32", "-compile", "off", "-window", str(_WINDOW)]
    command = [sys.executable, "-c", code, "x.txt", "-o", "o.npy", "-ray", "local", *options]
    # The order of sums depends on the number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as run:
        wait_for_rows(tmp_path / "o.npy.parts", 3 * _WINDOW, run)
        run.kill()
    assert not (tmp_path / "o.npy").exists()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=2 * HANG_S)
    encoder = Encoder(model, dtype="float32", compile="off")
    starts = range(0, len(texts), _WINDOW)
    expected = np.concatenate([encoder.encode(texts[i : i + _WINDOW], pairs=False) for i in starts])
    assert np.array_equal(np.load(tmp_path / "o.npy"), expected)


def test_what_the_machines_of_a_cluster_cannot_do_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(on_ray, "_SILENCE_S", 0.1)  # the encoders take longer to start
    (tmp_path / "x.txt").write_text("a")
    words = [str(tmp_path / "x.txt"), "-o", str(tmp_path / "o.npy"), "-ray", "local"]
    assert encode([*words, "-model_dir", "/no/such/folder"]) == 1
    *waiting, last = capsys.readouterr().err.splitlines()
    assert "free CPUs of the cluster" in waiting[0]
    assert "/no/such/folder" in last
    assert "ActorDied" not in last
    assert not ray.is_initialized()  # an application that asked for this is not left in the cluster


def test_a_cluster_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("a")
    words = [str(tmp_path / "x.txt"), "-o", str(tmp_path / "o.npy")]
    assert encode([*words, "-ray", "no-such-protocol://here"]) == 1
    assert "cannot use the Ray cluster at no-such-protocol://here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        encode([*words, "-ray", "auto", "-server", "localhost"])
    assert "server and ray exclude each other" in capsys.readouterr().err
