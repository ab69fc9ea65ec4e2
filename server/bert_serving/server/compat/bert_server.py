"""BertServer: a server from within a Python program, in a process of its own.

    the program       BertServer, a thread: starts the process, waits for its end
    the process       main: the supervisor, as bert-serving-start has it

They share a pipe each way. The process says "ready", or why it cannot be. It stops at a byte behind its settings,
and when the pipe ends or its parent is another, so that it never outlives the program, however that came to its
end: forks of the program may hold the pipe open.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import IO, Any

from ..settings import Settings

log = logging.getLogger(__name__)

_READY = b"ready\n"
_STOP = b"\n"
_CLOSE_S = 15.0
_ORPHAN_POLL_S = 1.0

_servers: weakref.WeakSet[BertServer] = weakref.WeakSet()


def _leave_all() -> None:
    for server in list(_servers):
        server._after_fork()


os.register_at_fork(after_in_child=_leave_all)


class BertServer(threading.Thread):
    """A server with bert-as-service's interface.

    args: what `helper.get_args_parser().parse_args(...)` returned, changed or not.
    is_ready: an Event, set while it serves.

    As a context manager it is ready inside. Raises ValueError for bad arguments and for a model that is not
    there, and RuntimeError, in `with` or in `wait_ready`, for whatever else keeps it from serving.

    >>> args = get_args_parser().parse_args(["-port", "5555", "-port_out", "5556", "-cpu"])
    >>> with BertServer(args):
    ...     BertClient().encode(["hello"])
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from ..supervisor.startup import StartError, resolve
        from .args import settings_of

        super().__init__(name="BertServer", daemon=True)
        self._settings = settings_of(args)
        try:
            resolve(self._settings)  # the process does it again; but here it can be said to the caller
        except StartError as exc:
            raise ValueError(str(exc)) from exc
        self.is_ready = threading.Event()
        self._has_begun = threading.Event()  # to serve, or to fail
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
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
        """Start the server; `is_ready` says when it serves. Raises RuntimeError the second time."""
        if self.ident is not None:
            raise RuntimeError("a BertServer can be started once; make another one")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the program, which then closes this
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()
        super().start()

    def run(self) -> None:
        """Wait for the end of the server."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == _READY:
                self.is_ready.set()
                self._has_begun.set()
            else:
                self._trouble = line.decode(errors="replace").strip()
        code = self._process.wait()
        self.is_ready.clear()
        self._trouble = self._trouble or f"the server ended with exit code {code}"
        self._has_begun.set()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Return when it serves. Raises RuntimeError if it cannot, and TimeoutError after `timeout` seconds."""
        if not self._has_begun.wait(timeout):
            raise TimeoutError(f"the server was not ready within {timeout:g} s")
        if not self.is_ready.is_set():
            raise RuntimeError(self._trouble)

    def close(self) -> None:
        """Stop the server: it finishes what it has accepted."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        if not process.stdin.closed:
            with suppress(OSError):  # it has ended already
                process.stdin.write(_STOP)
                process.stdin.close()
        try:
            process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        if self.is_alive():
            self.join()

    def _after_fork(self) -> None:
        """In the child: the server belongs to the parent, so `close` does nothing here."""
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
    ) -> None:
        """Stop the server that listens somewhere. Raises TerminateError.

        args: as get_shutdown_parser gives them, or the port. timeout: milliseconds to wait for its end.
        """
        from .termination import terminate_server

        if isinstance(args, int):
            port = args
        elif args is not None:
            ip, port = getattr(args, "ip", ip), getattr(args, "port", port)
            timeout = getattr(args, "timeout", timeout)
        terminate_server(ip, port, timeout_s=timeout / 1000)


def main() -> int:
    """Serve with the settings in the first line of standard input until told to stop; the other process."""
    from ..supervisor.child import set_up_logging
    from ..supervisor.startup import StartError, resolve, token_rows
    from ..supervisor.supervisor import Supervisor

    parent = os.getppid()
    # Without a buffer, which could hold what `select` is to see.
    control, report = io.FileIO(0), sys.stdout.buffer
    asked = Settings(**json.loads(control.readline()))
    set_up_logging("server", verbose=asked.verbose)
    for line in asked.without_effect():
        log.warning("%s", line)
    try:
        settings = resolve(asked)
        supervisor = Supervisor(
            settings, token_rows=token_rows(asked, settings), on_ready=lambda: _say(report, _READY)
        )
        threading.Thread(target=_stop_when_told, args=(control, parent, supervisor), daemon=True).start()
        with supervisor.stop_on_signals():
            supervisor.run()
    except StartError as exc:
        log.error("%s", exc)
        _say(report, f"{exc}\n".encode())
        return 1
    return 0


def _stop_when_told(control: io.FileIO, parent: int, supervisor: Any) -> None:
    while os.getppid() == parent and not select.select([control], [], [], _ORPHAN_POLL_S)[0]:
        pass
    supervisor.request_stop()


def _say(report: IO[bytes], line: bytes) -> None:
    with suppress(OSError):  # nobody listens any more
        report.write(line)
        report.flush()


if __name__ == "__main__":
    sys.exit(main())
