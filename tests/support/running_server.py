"""Start bert-serving-start as a separate process group, on free ports."""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypedDict

import psutil

from tests.support.waiting import HANG_S, wait_until

#: Linux gives ports from 32768 on to outgoing connections, so these ports are lower.
_PORTS = range(12_000, 32_000)
_BLOCK_SIZE = 400

_BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Return ports that no process listens on now, and that no other process of the tests will choose."""
    ports = filter(_is_free, _ports_of_this_process())
    return list(itertools.islice(ports, count))


@functools.cache
def _ports_of_this_process() -> Iterator[int]:
    """Claim a block of ports until this process ends; return an endless iterator over the block.

    A port is chosen some time before a server listens on it. If each test process looked for any free port, two of
    them could choose the same one. The lock's file stays open, so the lock is held until the process ends.
    """
    folder = Path(tempfile.gettempdir()) / f"bert-serving-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for first in range(_PORTS.start, _PORTS.stop, _BLOCK_SIZE):
        lock = os.open(folder / str(first), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return itertools.cycle(range(first, first + _BLOCK_SIZE))
    raise RuntimeError(f"every block of ports is claimed by a running test process: see {folder}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def command(name: str, *args: object) -> list[str]:
    """Return the command line of a console script of this environment."""
    return [str(_BIN / name), *map(str, args)]


class Ports(TypedDict):
    """The ports of a server, as keyword arguments for the clients."""

    port: int
    port_out: int


class RunningServer:
    """A server process. The constructor starts it; `wait_ready` returns when every worker is ready.

    prefix: a command that becomes the command that follows, such as nsenter. http: whether there is a port for
    HTTP. same_ports_as: a server that has ended, whose ports this one takes.
    """

    port: int
    port_out: int
    http_port: int

    def __init__(
        self,
        *args: object,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        http: bool = True,
        same_ports_as: RunningServer | None = None,
    ) -> None:
        taken = same_ports_as
        self.port, self.port_out, self.http_port = (
            free_ports(3) if taken is None else (taken.port, taken.port_out, taken.http_port)
        )
        # The server's private sockets are in this folder. A file that is left after the server's end is a leak.
        self.tmp = tempfile.TemporaryDirectory(prefix="bs")
        ports = ["-port", self.port, "-port_out", self.port_out, *(["-http_port", self.http_port] if http else [])]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self.process = subprocess.Popen(
            [*prefix, *command("bert-serving-start", *ports, *args)],
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
        return read_so_far(self._log)

    def wait_ready(self) -> RunningServer:
        """Wait until every worker is ready; return this server."""
        self.wait_for("all set, ready to serve request!")
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def wait_for(self, text: str) -> None:
        """Wait until the text is in the log."""

        def is_logged() -> bool:
            has_ended = self.process.poll() is not None
            is_there = text in self.log
            assert is_there or not has_ended, f"the server ended with {self.process.returncode}:\n{self.log}"
            return is_there

        wait_until(is_logged, lambda: f"no {text!r} in the log within {HANG_S} s:\n{self.log}")

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that are ready, from the server's status."""
        from bert_serving.client import BertClient

        with BertClient(**self.ports, ignore_all_checks=True) as client:
            return [worker["pid"] for worker in client.server_status["workers"] if worker["state"] == "ready"]

    @contextmanager
    def paused_workers(self) -> Iterator[None]:
        """Stop the workers inside the context: however fast the machine is, no request is computed meanwhile."""
        pids = self.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):  # it was silent for so long that the server has replaced it
                    os.kill(pid, signal.SIGCONT)

    def signal(self, signum: int) -> None:
        """Send a signal to the server process."""
        self.process.send_signal(signum)

    def wait_end(self) -> int:
        """Wait until the process has ended; return the exit code."""
        try:
            return self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {HANG_S} s:\n{self.log}") from None

    def assert_nothing_left(self) -> None:
        """Wait until no child process is left; check that the folder for temporary files is empty."""
        # An orphan that has ended stays a zombie if process 1 does not reap it, as in some containers.
        wait_until(
            lambda: not any(map(is_alive, self.family)),
            lambda: f"left behind: {list(filter(is_alive, self.family))}\n{self.log}",
        )
        left = [str(path) for path in Path(self.tmp.name).rglob("*")]
        assert left == [], self.log


def read_so_far(file: IO[str]) -> str:
    """Return what a running process has written to a file that this process opened for it.

    Both share the position in the file: seek() here would let the process overwrite its first lines.
    """
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_start(*args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run bert-serving-start until it ends, for tests of starts that fail."""
    return subprocess.run(
        command("bert-serving-start", *args),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
        check=False,
    )
