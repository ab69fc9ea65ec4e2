"""Starts the servers and clients of the benchmark, and always ends them."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from bert_serving.client import BertClient, ServingError

from .client import Task
from .experiments import NUM_WARM_UP, Plan, Point, Speeds, result_file, result_table
from .sentences import vocabulary_of

_START = "import sys; from bert_serving.server.cli import start; sys.exit(start())"
_CLIENT = "bert_serving.server.compat.benchmark.client"
_POLL_S = 0.1
_REPLY_MS = 2_000
_STOP_S = 15.0  # more than the server's drain time

# Signals are blocked while a process is started, up to the `try` block that ends the process. Otherwise a signal
# before this block would leave the process running.
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
_hold_interrupts = partial(signal.pthread_sigmask, signal.SIG_BLOCK, _INTERRUPTS)
_let_interrupts = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _INTERRUPTS)

#: A server's reply to SHOW_STATUS, from JSON.
Status: TypeAlias = Mapping[str, Any]


class BenchmarkError(Exception):
    """A measurement failed; the message says why."""


def run(plan: Plan) -> None:
    """Measure all points, print the tables and append them to a file. Raises BenchmarkError.

    If a server does not start or a client fails, the table has a dash, and the next measurement begins.
    Raises if the first server does not start, because the next servers would not start either.
    """
    _check_vocabulary(plan.vocab_file)
    file: Path | None = None
    for name in plan.experiments:
        results: dict[str, list[tuple[int, Speeds | None]]] = {protocol: [] for protocol in plan.protocols}
        for value, point in plan.points(name):
            speeds: dict[str, Speeds] = {}
            try:
                with _server(plan, point) as server:
                    status = server.wait_ready(plan.wait_till_ready)
                    if file is None:
                        file = Path(result_file(status["num_worker"], is_half=plan.is_half))
                        _record(file, f"\n{machine_line(status)}\n{plan}\n")
                    for protocol in plan.protocols:
                        speeds[protocol] = _measure(plan, point, server, protocol)
                        _say_speeds(name, value, protocol, speeds[protocol])
            except BenchmarkError as exc:
                if file is None:
                    raise
                _say(f"{name} {value}: {exc}")
            for protocol in plan.protocols:
                results[protocol].append((value, speeds.get(protocol)))
        assert file is not None
        for protocol in plan.protocols:
            _record(file, result_table(name, protocol, results[protocol]))
    _say(f"\nappended to {file}")


def machine_line(status: Status) -> str:
    """Return machine, model and versions in one line."""
    workers = status["workers"]
    first = workers[0]
    device = _gpu_name() if str(first["device"]).startswith("cuda") else "CPU"
    return (
        f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}; "
        f"{Path(status['model_dir']).name}, {first['dtype']} on {device}, {first['forward']}, "
        f"{len(workers)} worker{'s' if len(workers) > 1 else ''}; "
        f"version {status['version']}, torch {status['torch_version']}, Python {status['python_version']}"
    )


class _Server:
    """A process of bert-serving-start in a new session. Ctrl-C does not reach the process; `stop` ends it."""

    def __init__(self, flags: list[str], *, port: int, port_out: int) -> None:
        self.port, self.port_out = port, port_out
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by stop
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *flags],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_let_interrupts,  # noqa: PLW1509  # safe: a single system call
        )

    def wait_ready(self, limit_s: float) -> Status:
        """Return the status once every worker is ready.

        Raises BenchmarkError if the server ends, or if it is not ready within limit_s seconds.
        """
        deadline = time.monotonic() + limit_s
        with BertClient(
            port=self.port,
            port_out=self.port_out,
            ignore_all_checks=True,
            timeout=_REPLY_MS,
            connect_timeout=_REPLY_MS,
        ) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise BenchmarkError(f"the server ended: {self._last_line()}")
                with suppress(ServingError, TimeoutError):
                    status = client.server_status
                    if status["ready"]:
                        return status
                time.sleep(_POLL_S)
        raise BenchmarkError(f"the server was not ready within {limit_s:g} s; allow more with -wait_till_ready")

    def stop(self) -> None:
        """End the server; kill it if it does not end in time, or at a second Ctrl-C."""
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._log.close()

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else "exited without output"


@contextmanager
def _server(plan: Plan, point: Point) -> Iterator[_Server]:
    free = iter(_free_ports(2))
    port, port_out = (int(str(plan.flags.get(name) or next(free))) for name in ("port", "port_out"))
    flags = plan.server_flags(point, {"port": port, "port_out": port_out})
    _hold_interrupts()
    server = _Server(flags, port=port, port_out=port_out)
    try:
        _let_interrupts()
        yield server
    finally:
        server.stop()


def _measure(plan: Plan, point: Point, server: _Server, protocol: str) -> Speeds:
    """Return the speed of each client. Raises BenchmarkError if a client fails."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                _client(
                    Task(
                        server.port,
                        server.port_out,
                        vocab_file=plan.vocab_file,
                        batch_size=point.client_batch_size,
                        sentence_len=point.sentence_len,
                        protocol=protocol,
                        num_repeat=plan.num_repeat,
                        seed=seed,
                    )
                )
            )
            for seed in range(point.num_client)
        ]
        for client in clients:
            assert client.stdout is not None
            if client.stdout.readline() != "ready\n":
                raise BenchmarkError(f"a client failed: {_last_error(client)}")
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        speeds = []
        for client in clients:
            out, error = client.communicate()
            if client.returncode != 0:
                raise BenchmarkError(f"a client failed: {_last_of(error)}")
            times = json.loads(out)[NUM_WARM_UP:]
            speeds.append(point.client_batch_size * len(times) / sum(times))
    return Speeds(tuple(speeds))


@contextmanager
def _client(task: Task) -> Iterator[subprocess.Popen[str]]:
    _hold_interrupts()
    client = subprocess.Popen(
        [sys.executable, "-m", _CLIENT, task.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_let_interrupts,  # noqa: PLW1509  # safe: a single system call
    )
    try:
        _let_interrupts()
        yield client
    finally:
        client.kill()  # does nothing if the client has ended
        client.wait()
        for pipe in (client.stdin, client.stdout, client.stderr):
            with suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


def _last_error(client: subprocess.Popen[str]) -> str:
    _, error = client.communicate()
    return _last_of(error)


def _last_of(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[-1] if lines else "exited without output"


def _check_vocabulary(file: str) -> None:
    try:
        words = vocabulary_of(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise BenchmarkError(f"client_vocab_file: cannot read {file}: {exc}; give any text file") from exc
    if not words:
        raise BenchmarkError(f"client_vocab_file: {file} has no words")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def _gpu_name() -> str:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return names.strip().partition("\n")[0] or "GPU"
    return "GPU"


def _record(file: Path, text: str) -> None:
    _say(text.removesuffix("\n"))
    with file.open("a", encoding="utf-8") as appended:
        appended.write(text)


def _say_speeds(name: str, value: int, protocol: str, speeds: Speeds) -> None:
    each = speeds.of_clients
    _say(
        f"{name} {value}, {protocol}: "
        f"avg speed: {speeds.mean}\tmax speed: {int(max(each))}\tmin speed: {int(min(each))}"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
