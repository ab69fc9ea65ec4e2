"""bert-serving-encode lets a running server compute."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from bert_serving.client import BertClient
from bert_serving.protocol import (
    CommandRequest,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    InfoReply,
    PayloadTooLarge,
    Usage,
)
from bert_serving.server.cli import encode
from bert_serving.server.files import engines
from bert_serving.server.files.options import parse_job
from bert_serving.server.files.run import encode_files

from tests.support.bare_server import Answer, BareServer
from tests.support.running_server import RunningServer, free_ports
from tests.support.sentences import sentences
from tests.support.waiting import HANG_S


def test_a_server_gives_the_vectors(server: RunningServer, client: BertClient, tmp_path: Path) -> None:
    texts = [text.replace("\n", " ") for text in sentences(2500)]
    (tmp_path / "x.txt").write_text("\n".join(texts))
    address = f"localhost:{server.ports['port']}:{server.ports['port_out']}"
    output = tmp_path / "out.npy"
    assert encode([str(tmp_path / "x.txt"), "-server", address, "-window", "2000", "-o", str(output)]) == 0
    found = np.load(output)
    some = [0, 1, 1023, 1024, 1999, 2000, 2499]
    expected = client.encode([texts[i] for i in some], pairs=False)
    assert ((found[some] * expected).sum(1) / (found[some] ** 2).sum(1)).min() > 0.9999
    assert found.shape == (2500, expected.shape[1])


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("a")
    port, port_out = free_ports(2)
    words = [str(tmp_path / "x.txt"), "-server", f"localhost:{port}:{port_out}", "-o", str(tmp_path / "out.npy")]
    assert encode(words) == 1
    assert f"cannot use the server at localhost:{port}:{port_out}" in capsys.readouterr().err


def status(facts: dict[str, object]) -> Answer:
    """Return what answers to SHOW_STATUS, and to nothing else."""
    return lambda asked: (
        None if isinstance(asked, EncodeRequest) else InfoReply(asked.identity, asked.request_id, facts)
    )


def test_a_server_without_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("a")
    with BareServer(status({"server_version": "1.10.0"})) as server:
        address = f"localhost:{server.port}:{server.port_out}"
        assert encode([str(tmp_path / "x.txt"), "-server", address, "-o", str(tmp_path / "out.npy")]) == 1
    assert f"the server at {address} has no worker that is ready" in capsys.readouterr().err


def test_a_server_that_is_silent_is_named_and_its_reply_is_still_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "_SILENCE_S", 0.1)
    (tmp_path / "x.txt").write_text("one")
    facts = {"model": "a name", "workers": [{"dtype": "float32", "dimension": 2}]}
    said: SimpleQueue[str] = SimpleQueue()

    def answer(asked: EncodeRequest | CommandRequest) -> EncodeReply | InfoReply:
        if isinstance(asked, CommandRequest):
            return InfoReply(asked.identity, asked.request_id, facts)
        assert f"localhost:{server.port}:{server.port_out} has sent nothing for" in said.get(timeout=HANG_S)
        usage = Usage([3], 1, 1, 1, 1, "a name")
        return EncodeReply(asked.identity, asked.request_id, np.ones((1, 2), np.float32), usage=usage)

    with BareServer(answer) as server:
        words = ["x.txt", "-server", f"localhost:{server.port}:{server.port_out}", "-o", "out.npy"]
        encode_files(parse_job(words), said.put)
    assert np.array_equal(np.load("out.npy"), [[1, 1]])


def test_requests_that_are_too_large_become_smaller_and_a_server_that_starts_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "_RETRY_S", 0.01)
    (tmp_path / "x.txt").write_text("\n".join(map(str, range(10))))
    ready = {"model": "a name", "workers": [{"dtype": "float32", "dimension": 1}]}
    states = iter([ready, {**ready, "workers": []}, {**ready, "workers": []}, ready])

    def answer(asked: EncodeRequest | CommandRequest) -> EncodeReply | InfoReply | ErrorReply:
        if isinstance(asked, CommandRequest):
            return InfoReply(asked.identity, asked.request_id, next(states))
        if len(asked.texts) > 3:
            return ErrorReply(asked.identity, asked.request_id, PayloadTooLarge("at most 3 texts"))
        usage = Usage([3] * len(asked.texts), 1, 1, 1, 1, "a name")
        rows = np.array([[float(text)] for text in asked.texts], np.float32)
        return EncodeReply(asked.identity, asked.request_id, rows, truncated=[0], usage=usage)

    with BareServer(answer) as server:
        words = ["x.txt", "-server", f"localhost:{server.port}:{server.port_out}", "-o", "out.npy"]
        outcome = encode_files(parse_job(words), pytest.fail)
    assert np.array_equal(np.load("out.npy")[:, 0], range(10))
    assert outcome.num_cut == 4, "requests"
    assert next(states, None) is None


def test_a_run_can_be_interrupted_while_the_server_is_silent(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a")
    facts = {"model": "a name", "workers": [{"dtype": "float32", "dimension": 4}]}
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bert_serving.server.cli import encode; sys.exit(encode())"
    )
    with BareServer(status(facts)) as server:
        words = ["x.txt", "-server", f"localhost:{server.port}:{server.port_out}", "-o", "out.npy"]
        run = [sys.executable, "-c", code, *words]
        with subprocess.Popen(run, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            assert isinstance(server.next_request(), CommandRequest)
            assert isinstance(server.next_request(), EncodeRequest)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, said
    assert "Traceback" not in said
