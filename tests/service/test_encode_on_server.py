"""bert-serving-encode lets a running server compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bert_serving.client import BertClient
from bert_serving.server.cli import encode

from tests.support.running_server import RunningServer, free_ports
from tests.support.sentences import sentences


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
