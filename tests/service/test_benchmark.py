"""bert-serving-benchmark runs short experiments with real servers and clients."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.running_server import is_alive
from tests.support.waiting import HANG_S, wait_until

BENCHMARK = (
    *(sys.executable, "-c"),
    "import sys; from bert_serving.server.cli import benchmark; sys.exit(benchmark())",
)
FLAGS = {
    name: f"-test_{name}"
    for name in ("client_batch_size", "max_batch_size", "max_seq_len", "num_client", "pooling_layer")
}


def command(folder: Path, **experiments: str) -> list[str]:
    """Return the command line of a short run that does only these experiments."""
    (folder / "words.txt").write_text("first do it then do it right and then do it better")
    tiny = ["-max_seq_len", "16", "-num_repeat", "3", "-client_batch_size", "4", "-wait_till_ready", str(HANG_S)]
    tests = [word for name, flag in FLAGS.items() for word in (flag, *experiments.get(name, "").split())]
    return [*BENCHMARK, *tiny, "-client_vocab_file", str(folder / "words.txt"), *tests]


def test_two_experiments_in_both_protocols(tmp_path: Path) -> None:
    argv = command(tmp_path, num_client="2", pooling_layer="-12")  # layer -12 fails: the demo model has 6
    done = subprocess.run(
        [*argv, "-mixed"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    tables = (tmp_path / "benchmark-1.result").read_text()
    assert re.search(r"\d+ cores, Linux .*; model, \w+ on CPU, packed, 1 worker; version", tables)
    for protocol in ("full-length sentences", "sentences of mixed length"):
        title = rf"\*\*num_client, {protocol}\*\*\n\n\|`num_client`\t\|samples/s\|samples/s of all clients\|\n"
        assert re.search(rf"{title}\|---\|---\|---\|\n\|2\t\|\d+\|\d+\|\n", tables)
        assert f"**pooling_layer, {protocol}**" in tables
    assert tables.count("|-12\t|-|") == 2
    assert "pooling_layer must be in -6..5 for this model, got -12" in done.stdout
    assert tables.partition("**pooling_layer")[2].strip() in done.stdout


def test_ctrl_c_ends_server_and_benchmark(tmp_path: Path) -> None:
    running = subprocess.Popen(
        command(tmp_path, client_batch_size="4096"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert any("unless varied" in line for line in iter(running.stdout.readline, ""))
    family = psutil.Process(running.pid).children(recursive=True)
    assert len(family) >= 2
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=HANG_S)
    assert (running.returncode, err) == (130, "")
    wait_until(lambda: not any(map(is_alive, family)), lambda: f"left behind: {list(filter(is_alive, family))}")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["-client_vocab_file", "no-such-file"], "client_vocab_file: cannot read no-such-file"),
        (["-model_dir", "/no/such/folder"], "the server ended: .*no such folder: /no/such/folder"),
    ],
)
def test_a_benchmark_that_cannot_start_says_why_in_one_line(tmp_path: Path, extra: list[str], said: str) -> None:
    done = subprocess.run(
        [*command(tmp_path, client_batch_size="1 2"), *extra],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(f"bert-serving-benchmark: {said}", line)
    assert list(tmp_path.glob("*.result")) == []
