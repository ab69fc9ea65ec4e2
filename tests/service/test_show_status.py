"""bert-serving-status with a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_serving.client import BertClient

from tests.support.running_server import RunningServer, free_ports
from tests.support.terminal import Terminal
from tests.support.waiting import HANG_S

# Does the same as the console script, but with the code that this test imports.
STATUS = (sys.executable, "-c", "import sys; from bert_serving.server.cli import status; sys.exit(status())")


def run_status(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STATUS, *map(str, args)], capture_output=True, text=True, timeout=HANG_S, check=False)


def ports_of(server: RunningServer) -> list[str]:
    return ["-port", str(server.port), "-port_out", str(server.port_out)]


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
    watching = subprocess.Popen(
        [*STATUS, *ports_of(server), "-watch", "0.3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    lines = iter(watching.stdout.readline, "")
    assert any("per second since its start" in line for line in lines)
    assert any("per second in the last 0." in line for line in lines)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=HANG_S)
    assert (watching.returncode, err) == (0, "")


def test_the_dashboard_shows_a_running_server_until_q(server: RunningServer, client: BertClient) -> None:
    with Terminal([*STATUS, *ports_of(server), "-watch", "0.2"]) as terminal:
        terminal.wait_for(
            f"localhost:{server.port}", "ready, up 0:", "worker-0", "last 5 minutes", "in the last 60 s"
        )
        client.encode(["one", "two"])
        terminal.wait_for("█", "p99 ", " ms")
        terminal.press("q")
        assert terminal.wait_end() == 0
        assert terminal.is_as_before


def test_the_dashboard_can_be_read_in_40_columns(server: RunningServer, client: BertClient) -> None:
    with Terminal([*STATUS, *ports_of(server), "-watch", "0.2"], columns=40) as terminal:
        terminal.wait_for("worker-0", "busy, last 5 s", "%", "last 5 minutes", "q or Ctrl-C")
        client.encode(["one", "two"])
        terminal.wait_for("█")
        assert "…" not in terminal.text  # what rich writes in place of what does not fit
        terminal.press("q")
        assert terminal.wait_end() == 0


def test_ctrl_c_ends_the_dashboard(server: RunningServer) -> None:
    with Terminal([*STATUS, *ports_of(server), "-watch"]) as terminal:
        terminal.wait_for("ready, up 0:")
        terminal.press("\x03")
        assert terminal.wait_end() == 0
        assert terminal.is_as_before
        assert "Traceback" not in terminal.text


def test_sigterm_ends_the_dashboard_and_leaves_the_terminal_as_it_was(server: RunningServer) -> None:
    with Terminal([*STATUS, *ports_of(server), "-watch"]) as terminal:
        terminal.wait_for("ready, up 0:")
        terminal.process.terminate()
        assert terminal.wait_end() == 0
        assert terminal.is_as_before
        assert "Traceback" not in terminal.text


def test_without_rich_a_terminal_shows_the_table(server: RunningServer) -> None:
    python, flag, program = STATUS
    without_rich = [python, flag, f"import sys; sys.modules['rich'] = None; {program}"]
    with Terminal([*without_rich, *ports_of(server), "-watch", "0.2"]) as terminal:
        terminal.wait_for(f"server   localhost:{server.port}, ready, up 0:", "per second in the last 0.")
        terminal.press("\x03")
        assert terminal.wait_end() == 0


def test_watching_goes_on_when_a_server_dies_and_comes_back(tiny: Path) -> None:
    with RunningServer("-model_dir", tiny, http=False) as first:
        first.wait_ready()
        watch = [*STATUS, *ports_of(first), "-watch", "0.2"]
        with Terminal(watch) as terminal, plain(watch) as (watching, out, err):
            terminal.wait_for("ready, up 0:")
            assert any("ready, up 0:" in line for line in out)
            first.signal(signal.SIGTERM)
            first.wait_end()
            terminal.wait_for("no reply: ", "worker-0")
            assert next(err).startswith("bert-serving-status: ")
            with RunningServer("-model_dir", tiny, http=False, same_ports_as=first):
                terminal.wait_for("ready, up 0:", "worker-0")
                assert "no reply" not in terminal.text
                assert any("per second since its start" in line for line in out)
                terminal.press("q")
                assert terminal.wait_end() == 0
                watching.send_signal(signal.SIGINT)
                assert watching.wait(HANG_S) == 0


@contextmanager
def plain(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], Iterator[str], Iterator[str]]]:
    """Run a command without a terminal; yield its process and the lines of its output and of its errors."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        yield process, iter(process.stdout.readline, ""), iter(process.stderr.readline, "")


def test_without_a_server_it_says_so_in_one_line() -> None:
    port, port_out = free_ports(2)
    done = run_status("-port", port, "-port_out", port_out)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"bert-serving-status: cannot reach the server: localhost:{port}")
