"""BertServer: a server that a Python program starts and stops.

    the program's process    BertServer, a thread: starts the server's process and waits for its end
    the server's process     main: runs the supervisor, as bert-serving-start does

The program writes the settings to the server's standard input, and later one byte to stop it. The server writes
"ready" to its standard output, or the reason why it cannot serve. The server must never run longer than the
program, so it also stops when its input ends, and when its parent process has changed. The end of the input is not
enough, because forks of the program may keep the input open.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from ..settings import Settings

_READY = b"ready\n"
_STOP = b"\n"
_CLOSE_MARGIN_S = 10.0  # after the drain time, a server ends its processes in a few seconds
_ORPHAN_POLL_S = 1.0

_servers: weakref.WeakSet[BertServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_servers):
        server._after_fork()


os.register_at_fork(after_in_child=_forget_all)


class BertServer(threading.Thread):
    """A server with bert-as-service's interface.

    args: what `helper.get_args_parser().parse_args(...)` returned, with or without changes.
    is_ready: an Event that is set while the server is ready. port, port_out, model_dir, max_seq_len, num_worker
    and max_batch_size have the values in args.

    `with` starts the server, waits until the server is ready, and stops it at the end. The constructor raises
    ValueError for bad arguments and for a model that cannot be found. `with` and `wait_ready` raise RuntimeError
    if the server cannot serve for another reason.

    >>> args = get_args_parser().parse_args(["-port", "5555", "-port_out", "5556", "-cpu"])
    >>> with BertServer(args):
    ...     BertClient().encode(["hello"]).shape
    (1, 384)
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from ..supervisor.startup import StartError, resolve
        from .args import settings_of

        super().__init__(name="BertServer", daemon=True)
        self.args = args
        self._settings = settings_of(args)
        self.port, self.port_out = self._settings.port, self._settings.port_out
        self.model_dir, self.max_seq_len = self._settings.model_dir, self._settings.max_seq_len
        self.num_worker, self.max_batch_size = self._settings.num_worker, self._settings.max_batch_size
        try:
            resolve(self._settings)  # the server does this again; here, the caller gets the error
        except StartError as exc:
            raise ValueError(str(exc)) from exc
        self.is_ready = threading.Event()
        self._has_started = threading.Event()  # set when the server is ready, or has failed
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = ""
        _servers.add(self)

    def __enter__(self) -> BertServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and return at once; see `is_ready`. Raises RuntimeError if called twice."""
        if self.ident is not None:
            raise RuntimeError("a BertServer can be started only once; create another one")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only the program, which then closes this server
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()
        super().start()

    def run(self) -> None:
        """Wait until the server ends. Runs in the thread."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == _READY:
                self.is_ready.set()
                self._has_started.set()
            else:
                self._failure = line.decode(errors="replace").strip()
        code = self._process.wait()
        self.is_ready.clear()
        self._failure = self._failure or f"the server ended with exit code {code}"
        self._has_started.set()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server is ready. timeout: the limit in seconds; None: no limit.

        Raises TimeoutError after the timeout, and RuntimeError if the server cannot serve.
        """
        if not self._has_started.wait(timeout):
            raise TimeoutError(f"the server was not ready within {timeout:g} s")
        if not self.is_ready.is_set():
            raise RuntimeError(self._failure)

    def close(self) -> None:
        """Stop the server. The server first finishes the requests that it has accepted."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        if not process.stdin.closed:
            with suppress(OSError):  # the server has ended already
                process.stdin.write(_STOP)
                process.stdin.close()
        try:
            process.wait(self._settings.drain_timeout + _CLOSE_MARGIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        if self.is_alive():
            self.join()

    def _after_fork(self) -> None:
        """In a forked child: the server belongs to the parent, so `close` must do nothing here."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()

    @staticmethod
    def shutdown(
        args: argparse.Namespace | int | None = None,
        *,
        ip: str = "localhost",
        port: int = 5555,
        timeout: int = 15_000,
        curve_dir: str | None = None,
    ) -> None:
        """Stop the server at an address. Raises TerminateError.

        args: what the parser of `get_shutdown_parser` returned, or the port. timeout: milliseconds to wait for
        the end of the server. curve_dir: folder with a client's keys, if the server uses CURVE.
        """
        from .termination import terminate_server

        if isinstance(args, int):
            port = args
        elif args is not None:
            ip, port = getattr(args, "ip", ip), getattr(args, "port", port)
            timeout = getattr(args, "timeout", timeout)
            curve_dir = getattr(args, "curve_dir", curve_dir)
        terminate_server(ip, port, timeout_s=timeout / 1000, curve_dir=curve_dir)


def main() -> int:
    """Run the server's process: read the settings from standard input and serve until told to stop."""
    from ..supervisor.serve import serve
    from ..supervisor.startup import StartError
    from ..supervisor.supervisor import Supervisor

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the supervisor handles it, there is nothing to reload
    parent = os.getppid()
    control, report = io.FileIO(0), sys.stdout.buffer  # unbuffered: `select` cannot see bytes in a buffer

    def wait_for_stop(_settings: Settings, supervisor: Supervisor) -> None:
        args = (control, parent, supervisor.request_stop)
        threading.Thread(target=_stop_when_told, args=args, daemon=True).start()

    try:
        serve(
            Settings(**json.loads(control.readline())),
            on_start=wait_for_stop,
            on_ready=lambda: _write(report, _READY),
        )
    except StartError as exc:
        _write(report, f"{exc}\n".encode())
        return 1
    return 0


def _stop_when_told(control: io.FileIO, parent: int, stop: Callable[[], None]) -> None:
    while os.getppid() == parent and not select.select([control], [], [], _ORPHAN_POLL_S)[0]:
        pass
    stop()


def _write(report: IO[bytes], line: bytes) -> None:
    with suppress(OSError):  # the program has closed its end of the pipe
        report.write(line)
        report.flush()


if __name__ == "__main__":
    sys.exit(main())
