"""Every way to stop the server ends all its processes and removes all its files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zmq
from bert_serving.client import BertClient, Unavailable

from tests.support.running_server import RunningServer, command, free_ports
from tests.support.sentences import numbered
from tests.support.waiting import HANG_S, wait_until


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_everything_with_exit_code_0(signum: signal.Signals) -> None:
    with RunningServer() as running:
        running.wait_ready()
        running.signal(signum)
        assert running.wait_end() == 0
        running.assert_nothing_left()
        assert "killed" not in running.log  # no child had to be killed


def test_ctrl_c_reaches_the_whole_process_group() -> None:
    with RunningServer() as running:
        running.wait_ready()
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.wait_end() == 0
        running.assert_nothing_left()
        assert "Traceback" not in running.log


@pytest.mark.parametrize("delay_s", [0.7, 1.0, 1.5, 2.5])
def test_ctrl_c_at_any_moment_of_the_start_ends_it_quietly(delay_s: float) -> None:
    with RunningServer() as running:
        wait_until(lambda: catches(running.process.pid, signal.SIGTERM))  # Python itself takes a while to start
        time.sleep(delay_s)
        running.family = psutil.Process(running.process.pid).children(recursive=True)
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.wait_end() == 0
        running.assert_nothing_left()
        assert "Traceback" not in running.log


@pytest.mark.parametrize("module", ["logging", "pydantic", "zmq", "bert_serving.server.supervisor"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_during_the_first_imports_ends_it_quietly(module: str, signum: signal.Signals) -> None:
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(signum)})\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from bert_serving.server.cli import start\n"
        "sys.exit(start([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["pydantic", "bert_serving.server.supervisor"])
def test_a_hangup_during_the_first_imports_does_not_end_it(module: str) -> None:
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGHUP)\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from bert_serving.server.cli import start\n"
        "sys.exit(start(['-version']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("bert-serving-start ")


def test_nothing_heavy_is_imported_before_ctrl_c_is_caught() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import bert_serving.server.cli\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert set(done.stdout.split()) <= {
        "__future__",
        "bert_serving",
        "bert_serving.server",
        "bert_serving.server.cli",
        "bert_serving.server.cli.benchmark",
        "bert_serving.server.cli.encode",
        "bert_serving.server.cli.keys",
        "bert_serving.server.cli.start",
        "bert_serving.server.cli.status",
        "bert_serving.server.cli.terminate",
    }


def test_sigterm_while_models_load_ends_at_once() -> None:
    with RunningServer() as running:
        running.wait_for("worker_timeout = ")
        time.sleep(0.5)
        running.family = psutil.Process(running.process.pid).children(recursive=True)
        running.signal(signal.SIGTERM)
        assert running.wait_end() == 0
        running.assert_nothing_left()


def test_accepted_work_is_finished_before_the_end() -> None:
    with RunningServer("-drain_timeout", HANG_S) as running:
        running.wait_ready()
        with BertClient(**running.ports) as client:
            client.encode(numbered("one sentence to wait for", 300), blocking=False)
            client.server_status  # noqa: B018  # the reply shows that the texts were accepted
            running.signal(signal.SIGTERM)
            (rows,) = client.fetch_all()
            assert rows.shape == (300, 384)
        assert running.wait_end() == 0


def test_http_has_the_whole_drain_time() -> None:
    """An earlier version of the gateway ended after four seconds, even if the drain time was longer."""
    with RunningServer("-drain_timeout", HANG_S) as running, ThreadPoolExecutor(1) as pool:
        (worker,) = running.wait_ready().worker_pids()
        os.kill(worker, signal.SIGSTOP)
        reply = pool.submit(
            httpx.post, f"{running.url}/embed", json={"inputs": numbered("word", 400)}, timeout=HANG_S
        )
        with BertClient(**running.ports) as client:
            wait_until(lambda: client.server_status["open_requests"] > 0)
        running.signal(signal.SIGTERM)
        time.sleep(5)
        assert not reply.done()
        os.kill(worker, signal.SIGCONT)
        assert (reply.result().status_code, len(reply.result().json())) == (200, 400)
        assert running.wait_end() == 0


def test_work_that_does_not_fit_into_the_drain_time_gets_an_error() -> None:
    with RunningServer("-drain_timeout", "0.2") as running:
        running.wait_ready()
        with BertClient(**running.ports) as client:
            client.encode(numbered("a long sentence " * 30, 5000), blocking=False)
            client.server_status  # noqa: B018
            running.signal(signal.SIGTERM)
            with pytest.raises(Unavailable, match="shutting down"):
                list(client.fetch())
        assert running.wait_end() == 0
        running.assert_nothing_left()
        assert "killed" not in running.log


def test_a_killed_server_leaves_no_child_and_no_file() -> None:
    with RunningServer() as running:
        running.wait_ready()
        running.process.kill()
        running.process.wait()
        running.assert_nothing_left()


def test_terminate_is_refused_to_other_machines_and_obeyed_from_this_one() -> None:
    """A connection to a network address of this machine looks like a connection from another machine."""
    with RunningServer("-host", "0.0.0.0") as running:
        running.wait_ready()
        for address in _network_addresses():
            reply = _ask_to_terminate(address, running)
            assert reply["error"] == {
                "code": "unauthorized",
                "message": f"TERMINATION is accepted from this machine only, not from {address}; "
                "start the server with -allow_remote_termination to change this",
            }
        with BertClient(**running.ports) as client:
            assert client.encode(["it goes on"]).shape == (1, 384)
        done = _terminate("-port", running.port)
        assert done.returncode == 0
        assert "has stopped" in done.stdout
        assert running.wait_end() == 0
        running.assert_nothing_left()


def test_terminate_is_obeyed_from_anywhere_with_the_flag() -> None:
    with RunningServer("-host", "0.0.0.0", "-allow_remote_termination") as running:
        running.wait_for("HTTP is ready")
        address = (*_network_addresses(), "127.0.0.1")[0]
        done = _terminate("-ip", address, "-port", running.port)
        assert (done.returncode, done.stderr) == (0, "")
        assert running.wait_end() == 0
        assert f"termination requested peer={address}" in running.log


def test_terminate_fails_without_a_server() -> None:
    (port,) = free_ports(1)
    done = _terminate("-port", port)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"bert-serving-terminate: no server listens at localhost:{port}\n"


def test_terminate_does_not_take_http_for_a_server(server: RunningServer) -> None:
    done = _terminate("-port", server.http_port)
    assert done.returncode == 1
    assert "does not use the ZeroMQ protocol" in done.stderr


def test_a_server_that_dies_during_a_call_is_an_error() -> None:
    with RunningServer() as running:
        running.wait_ready()
        with BertClient(**running.ports, retry=False) as client:
            threading.Timer(0.5, running.process.kill).start()
            with pytest.raises(Unavailable, match=f"localhost:{running.port} went away"):
                client.encode(numbered("a long sentence " * 30, 5000))
        running.process.wait()
        running.assert_nothing_left()


def catches(pid: int, signum: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signum - 1) & 1)


def _network_addresses() -> list[str]:
    """Return the network addresses of this machine without loopback; none if there is no network."""
    found = [each for name in psutil.net_if_addrs().values() for each in name if each.family == socket.AF_INET]
    return [each.address for each in found if not each.address.startswith("127.")]


def _ask_to_terminate(address: str, server: RunningServer) -> dict[str, Any]:
    """Send TERMINATION to an address of the server; return the info frame of its reply."""
    identity = str(uuid.uuid4()).encode()
    with zmq.Context() as context, context.socket(zmq.SUB) as ear, context.socket(zmq.PUSH) as pusher:
        ear.subscribe(identity)
        ear.connect(f"tcp://127.0.0.1:{server.port_out}")
        pusher.connect(f"tcp://{address}:{server.port}")
        pusher.send_multipart([identity, b"TERMINATION", b"1", b"0"])
        assert ear.poll(HANG_S * 1000), "no reply"
        info: dict[str, Any] = json.loads(ear.recv_multipart()[1])
        return info


def _terminate(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("bert-serving-terminate", *args), capture_output=True, text=True, timeout=HANG_S, check=False
    )
