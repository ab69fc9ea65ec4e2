"""bert-serving-status with a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from bert_serving.client import BertClient

from tests.support.running_server import RunningServer, free_ports
from tests.support.waiting import HANG_S

# Does the same as the console script, but with the code that this test imports.
STATUS = (sys.executable, "-c", "import sys; from bert_serving.server.cli import status; sys.exit(status())")


def run_status(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STATUS, *map(str, args)], capture_output=True, text=True, timeout=HANG_S, check=False)


def test_it_shows_a_running_server(server: RunningServer, client: BertClient) -> None:
    client.encode(["one", "two"])
    done = run_status("-port", server.port, "-port_out", server.port_out)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"server   localhost:{server.port}, ready, up 0:" in done.stdout
    assert "worker-0  ready" in done.stdout
    assert "per second since its start" in done.stdout
    asked = run_status("-port", server.port, "-port_out", server.port_out, "-json")
    status = json.loads(asked.stdout)
    assert (status["ready"], status["server_version"]) == (True, "1.10.0")
    assert status["statistic"]["num_total_seq"] >= 2


def test_it_watches_until_ctrl_c(server: RunningServer, client: BertClient) -> None:
    ports = ["-port", str(server.port), "-port_out", str(server.port_out)]
    watching = subprocess.Popen(
        [*STATUS, *ports, "-watch", "0.3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    lines = iter(watching.stdout.readline, "")
    assert any("per second since its start" in line for line in lines)
    assert any("per second in the last 0." in line for line in lines)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=HANG_S)
    assert (watching.returncode, err) == (0, "")


def test_without_a_server_it_says_so_in_one_line() -> None:
    port, port_out = free_ports(2)
    done = run_status("-port", port, "-port_out", port_out)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"bert-serving-status: cannot reach the server: localhost:{port}")
