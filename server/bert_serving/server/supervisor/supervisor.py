"""The server process: starts the children, keeps them alive, and ends them.

    run:   start children -> main loop -> drain -> stop children -> close

Children are spawned, never forked, and named by import string, so that this process never loads torch
and cannot be taken down by a model. A child that dies is replaced: at once if it had been ready, with
growing pauses if not. When it dies three times in a row before it was ready and nothing else can do its
work, the server gives up: it will not get better, and whoever started the server should see it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import zmq

from ..broker.broker import Broker
from ..broker.ports import PortInUse
from ..settings import Settings
from . import child
from .startup import StartError, max_seq_len_in_force, worker_spec

log = logging.getLogger(__name__)

_POLL_MS = 500
_SILENT_S = 30.0  # a worker beats every second; only a giant text in the tokenizer delays it
_START_S = 600.0
_STOP_S = 2.0
_MAX_EARLY_DEATHS = 3
_MAX_BACKOFF_S = 30.0
_BACKLOG = 2048
_MAX_IPC_PATH = 100  # the system's limit is 107 bytes

_spawn = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class _Child:
    """A process that should always run, and its present incarnation."""

    name: str
    target: str
    kwargs: dict[str, Any]
    verbose: bool
    scratch_dir: str
    env: dict[str, str] = field(default_factory=dict)
    process: BaseProcess | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    is_ready: bool = False
    num_early_deaths: int = 0

    def spawn(self) -> None:
        args = (self.target, self.name, self.verbose, self.scratch_dir, self.kwargs, self.env)
        self.process = _spawn.Process(target=child.run, args=args, name=self.name)
        # Ctrl-C reaches the whole process group, but the server alone decides when its children end. The
        # blocked signal is inherited, so that not even a child's first imports can be interrupted.
        resource_tracker.ensure_running()  # started by the first child otherwise, it would unblock the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.started_at = time.monotonic()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def bury(self) -> int | None:
        """Forget the dead incarnation; return its exit code."""
        assert self.process is not None
        self.process.join()
        exit_code = self.process.exitcode
        self.process.close()
        self.process = None
        self.num_early_deaths = 0 if self.is_ready else self.num_early_deaths + 1
        self.is_ready = False
        pause = 0.0 if self.num_early_deaths == 0 else 2.0 ** (self.num_early_deaths - 1)
        self.restart_at = time.monotonic() + min(pause, _MAX_BACKOFF_S)
        return exit_code


class Supervisor:
    """One server, from `run` until it is told to stop.

    settings: as `resolve` returns them; token_rows: see there. on_ready: called when everything serves for the
    first time. The constructor opens all ports and raises
    StartError if one is taken; `run` raises it when the service cannot be kept up. Either leaves nothing
    behind.
    """

    def __init__(
        self, settings: Settings, *, token_rows: int | None = None, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        assert settings.num_worker is not None
        assert settings.model_dir is not None
        self._settings = settings
        self._runtime_dir = _make_runtime_dir()
        self._wake_read, self._wake_write = socket.socketpair()
        self._num_stop_requests = 0
        self._announced = False
        self._on_ready = on_ready
        self._http_socket: socket.socket | None = None
        self._gateway_ready: dict[str, Connection] = {}
        names = [f"worker-{i}" for i in range(settings.num_worker)]
        endpoint = f"ipc://{self._runtime_dir}/workers"
        try:
            self._broker = Broker(
                settings,
                worker_endpoint=endpoint,
                worker_names=names,
                max_seq_len=max_seq_len_in_force(settings),
                token_rows=token_rows,
            )
            self._workers = {name: self._worker(i, name, endpoint) for i, name in enumerate(names)}
            self._gateways = [] if settings.http_port is None else self._make_gateways(settings.http_port)
        except PortInUse as exc:
            self._close()
            raise StartError(str(exc)) from exc
        except BaseException:
            self._close()
            raise
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._broker.poller.register(self._wake_read, zmq.POLLIN)

    # -- life ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `request_stop` or a TERMINATION."""
        try:
            for each in self._children:
                self._spawn(each)
            while not self._should_stop:
                self._broker.step(_POLL_MS)
                self._supervise()
            self._drain()
        finally:
            self._stop_children()
            self._close()

    def request_stop(self) -> None:
        """Ask for a graceful stop, asked twice for an immediate one. Safe from signal handlers and threads."""
        self._num_stop_requests += 1
        with suppress(OSError):
            self._wake_write.send(b"\0")

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM while the context lasts. Main thread only."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            self.request_stop()

        previous = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @property
    def _should_stop(self) -> bool:
        return self._num_stop_requests > 0 or self._broker.termination_requested

    @property
    def _children(self) -> list[_Child]:
        return [*self._workers.values(), *self._gateways]

    def _drain(self) -> None:
        """Take nothing new, finish what was accepted, and answer the rest with an error."""
        log.info("stopping: finishing accepted requests, at most %g s", self._settings.drain_timeout)
        self._broker.stop_accepting()
        self._terminate_gateways()
        deadline = time.monotonic() + self._settings.drain_timeout
        while time.monotonic() < deadline and self._num_stop_requests < 2:
            self._broker.step(_POLL_MS // 10)
            self._bury_the_dead()
            if self._broker.is_drained and not any(gateway.is_alive for gateway in self._gateways):
                return
        self._broker.fail_all("the server is shutting down")
        deadline = time.monotonic() + _STOP_S / 2  # for the gateways to pass the errors on
        while time.monotonic() < deadline and any(gateway.is_alive for gateway in self._gateways):
            self._broker.step(_POLL_MS // 10)

    def _stop_children(self) -> None:
        """End every child: those that listen are told, all others are killed."""
        self._broker.fail_all("the server is going down")
        self._broker.stop_workers()
        self._terminate_gateways()
        for each in self._children:
            if each.process is not None and not each.is_ready:
                each.process.kill()
        deadline = time.monotonic() + _STOP_S
        for each in self._children:
            if each.process is None:
                continue
            each.process.join(max(0.0, deadline - time.monotonic()))
            if each.process.is_alive():
                log.warning("%s did not end in time: killed", each.name)
                each.process.kill()
                each.process.join()
            each.process.close()
            each.process = None

    def _terminate_gateways(self) -> None:
        for gateway in self._gateways:
            if gateway.is_alive and gateway.process is not None:
                gateway.process.terminate()

    def _close(self) -> None:
        if hasattr(self, "_broker"):
            self._broker.close()
        for each in (self._http_socket, *self._gateway_ready.values(), self._wake_read, self._wake_write):
            if each is not None:
                each.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)

    # -- supervision -----------------------------------------------------------------------------------

    def _supervise(self) -> None:
        with suppress(BlockingIOError):
            self._wake_read.recv(64)
        self._note_ready()
        for name in self._broker.hung_workers(silent_s=_SILENT_S):
            self._kill(self._workers[name])
            self._broker.worker_lost(name)  # now, lest it count as ready while its last words are awaited
            log.error("%s does not answer: replacing it", name)
        now = time.monotonic()
        for each in self._children:
            if each.process is None:
                if now >= each.restart_at:
                    self._spawn(each)
            elif not each.process.is_alive():
                self._on_death(each)
            elif not each.is_ready and now - each.started_at > _START_S:
                log.error("%s was not ready within %g s: replacing it", each.name, _START_S)
                self._kill(each)

    def _note_ready(self) -> None:
        for name, worker in self._workers.items():
            if worker.process is not None:
                worker.is_ready = self._broker.workers[name].is_ready
        for gateway in self._gateways:
            if not gateway.is_ready and self._gateway_ready[gateway.name].poll():
                self._gateway_ready[gateway.name].recv_bytes()
                gateway.is_ready = True
                log.info("HTTP is ready on %s port %s", self._settings.host, self._settings.http_port)
        if not self._announced and all(each.is_ready for each in self._children):
            self._announced = True
            log.info("all set, ready to serve request!")
            self._on_ready()

    def _on_death(self, each: _Child) -> None:
        self._broker.step(0)  # its last words may still be in the socket
        worker = self._broker.workers.get(each.name)
        was_ready = each.is_ready
        exit_code = self._bury(each)
        if worker is not None:
            refusal = worker.refusal
            self._broker.worker_lost(each.name)
            if refusal is not None and not was_ready and not self._announced:
                raise StartError(refusal)
        else:
            refusal = None
        if each.num_early_deaths >= _MAX_EARLY_DEATHS and not any(w.is_ready for w in self._workers.values()):
            reason = refusal or f"exit code {exit_code}"
            raise StartError(f"{each.name} died {each.num_early_deaths} times before it was ready: {reason}")
        self._broker.metrics.worker_restarts.inc(worker is not None)
        log.error("%s died, exit code %s: replacing it", each.name, exit_code)

    def _bury(self, each: _Child) -> int | None:
        assert each.process is not None
        self._broker.poller.unregister(each.process.sentinel)
        return each.bury()

    def _bury_the_dead(self) -> None:
        """While draining: nobody is replaced, but a dead child's descriptor must not keep the loop spinning."""
        for each in self._children:
            if each.process is not None and not each.is_alive:
                self._bury(each)
                if each.name in self._workers:
                    self._broker.worker_lost(each.name)

    def _spawn(self, each: _Child) -> None:
        each.spawn()
        assert each.process is not None
        self._broker.poller.register(each.process.sentinel, zmq.POLLIN)

    def _kill(self, each: _Child) -> None:
        if each.process is not None:
            each.process.kill()
            each.process.join()

    # -- what the children are -------------------------------------------------------------------------

    def _worker(self, index: int, name: str, endpoint: str) -> _Child:
        settings = self._settings
        kwargs = {
            "name": name,
            "endpoint": endpoint,
            "num_sharing_cpu": settings.num_worker,
            "float16": settings.fp16,
            "tokenizer_path": None if settings.http_port is None else self._tokenizer_path,
            "spec": worker_spec(settings, index),
        }
        return self._child(name, "bert_serving.server.worker.worker:main", kwargs)

    def _make_gateways(self, http_port: int) -> list[_Child]:
        """Return the gateways, which all accept from one socket."""
        self._http_socket = listen(self._settings.host, http_port)
        count = self._settings.http_workers
        names = ["gateway"] if count == 1 else [f"gateway-{i}" for i in range(count)]
        metrics_dir = self._runtime_dir / "metrics"
        metrics_dir.mkdir()
        return [self._gateway(name, self._http_socket, metrics_dir) for name in names]

    def _gateway(self, name: str, http_socket: socket.socket, metrics_dir: Path) -> _Child:
        settings = self._settings
        self._gateway_ready[name], child_end = _spawn.Pipe(duplex=False)
        kwargs = {
            "http_socket": http_socket,
            "ready": child_end,
            "host": _reachable(settings.host),
            "port": settings.port,
            "port_out": settings.port_out,
            "max_body_bytes": settings.max_message_mb << 20,
            "cors": settings.cors,
            "model_name": settings.served_model_name,
            "tokenizer_path": self._tokenizer_path,
            "drain_timeout_s": settings.drain_timeout,
            "api_keys": tuple(key.get_secret_value() for key in settings.api_key),
        }
        gateway = self._child(name, "bert_serving.server.gateway.app:main", kwargs)
        gateway.env = {"PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)}
        return gateway

    def _child(self, name: str, target: str, kwargs: dict[str, Any]) -> _Child:
        return _Child(name, target, kwargs, self._settings.verbose, str(self._runtime_dir))

    @property
    def _tokenizer_path(self) -> str:
        return str(self._runtime_dir / "tokenizer.json")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket that outlives its gateways: a restart refuses nobody."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for what says that it is TCP; with it a small answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("" if host == "*" else host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise PortInUse(f"cannot listen on {host} port {port} (http_port): {exc.strerror}") from exc
    return listener


def _reachable(host: str) -> str:
    """Return the address at which this machine reaches its own ports."""
    return {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host)


def _make_runtime_dir() -> Path:
    """Return a new folder for the private socket, readable by this user alone."""
    folder = Path(tempfile.mkdtemp(prefix="bert-serving-", dir=os.environ.get("ZEROMQ_SOCK_TMP_DIR")))
    if len(str(folder)) > _MAX_IPC_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="bert-serving-", dir="/tmp"))
    return folder
