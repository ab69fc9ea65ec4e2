"""A real bert-serving-start in a process group of its own, on free ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

import psutil

START_S = 120.0
STOP_S = 10.0

_BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def command(name: str, *args: object) -> list[str]:
    """Return the command line of a console script of this environment."""
    return [str(_BIN / name), *map(str, args)]


class Ports(TypedDict):
    """The ports of a server, as the clients take them."""

    port: int
    port_out: int


class RunningServer:
    """Starts in the constructor; `wait_ready` returns when it says that it serves."""

    def __init__(self, *args: object, env: dict[str, str] | None = None) -> None:
        self.port, self.port_out, self.http_port = free_ports(3)
        # Where its private socket lies: whatever is left in here after its end is a leak.
        self.tmp = tempfile.TemporaryDirectory(prefix="bs")
        ports = ["-port", self.port, "-port_out", self.port_out, "-http_port", self.http_port]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self.process = subprocess.Popen(
            command("bert-serving-start", *ports, *args),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": self.tmp.name, **(env or {})},
            start_new_session=True,
        )
        self.family: list[psutil.Process] = []

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.tmp.cleanup()
        self._log.close()

    @property
    def ports(self) -> Ports:
        """The ports that the clients connect to."""
        return {"port": self.port, "port_out": self.port_out}

    @property
    def url(self) -> str:
        """The address of the HTTP port."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        """All log lines so far."""
        self._log.seek(0)
        return self._log.read()

    def wait_ready(self) -> RunningServer:
        self.wait_for("all set, ready to serve request!", START_S)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def wait_for(self, text: str, timeout_s: float) -> None:
        """Wait until the text is in the log."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s} s:\n{self.log}"
            time.sleep(0.05)

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that are there, by their command line."""
        from bert_serving.client import BertClient

        with BertClient(**self.ports, ignore_all_checks=True) as client:
            return [worker["pid"] for worker in client.server_status["workers"] if worker["state"] == "ready"]

    def signal(self, signum: int) -> None:
        """Send a signal to the server process."""
        self.process.send_signal(signum)

    def wait_end(self) -> int:
        """Wait for the end, within STOP_S; return the exit code."""
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {STOP_S} s:\n{self.log}") from None

    def assert_nothing_left(self) -> None:
        """No child process, and no file in the folder for temporary ones."""
        deadline = time.monotonic() + 2
        # An orphan that has ended stays a zombie where process 1 reaps nobody, as in some containers.
        while (alive := [p for p in self.family if _runs(p)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive, f"left behind: {alive}\n{self.log}"
        left = [str(path) for path in Path(self.tmp.name).rglob("*")]
        assert left == [], self.log


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_start(
    *args: object, timeout_s: float = 60, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run bert-serving-start to its end; for starts that should fail."""
    return subprocess.run(
        command("bert-serving-start", *args),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
        check=False,
    )
