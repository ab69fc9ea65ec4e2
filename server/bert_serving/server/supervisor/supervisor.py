"""The server process: starts the child processes, keeps them alive, and ends them.

    run:   start children -> main loop -> drain -> stop children -> close

This process never loads torch, so that no model can crash it. A child that dies is started again: at once if the
child had been ready, otherwise after a pause that grows. If a child dies three times in a row before it is ready,
and no worker is ready, the server gives up: another attempt would fail too, and the user must see the reason.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ..settings import Settings
from .launch import Launch
from .process import ChildProcess, GatewayProcess
from .startup import StartError

log = logging.getLogger(__name__)

_POLL_MS = 500
_SILENT_S = 30.0  # heartbeats come every second; only a very long text in the tokenizer delays them
_START_S = 600.0
_STOP_S = 2.0
_MAX_EARLY_DEATHS = 3


class Supervisor:
    """One server. `run` serves until the server is told to stop.

    settings: as returned by `startup.resolve`. token_rows: as returned by `startup.token_rows`. on_ready: called
    once, when all children are ready for the first time. The constructor opens all ports and raises StartError
    if a port is in use.
    """

    def __init__(
        self, settings: Settings, *, token_rows: int | None = None, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._has_been_ready = False
        self._num_stop_requests = 0
        self._is_reload_requested = False
        self._launch = Launch(settings, token_rows=token_rows)
        self._broker = self._launch.broker
        self._workers = self._launch.workers
        self._gateways = self._launch.gateways
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._broker.watch(self._wake_read.fileno())

    # -- phases ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `request_stop` or TERMINATION. Raises StartError if the children cannot be kept alive."""
        try:
            self._start_children()
            while not self._should_stop:
                self._broker.step(_POLL_MS)
                self._supervise()
            self._drain()
        finally:
            self._stop_children()
            self._close()

    def _start_children(self) -> None:
        for child in self._children:
            self._spawn(child)

    def _supervise(self) -> None:
        self._clear_wake_up()
        if self._is_reload_requested:
            self._reload()
        self._announce_readiness()
        self._replace_hung_workers()
        for child in self._children:
            self._keep_alive(child)

    def _drain(self) -> None:
        """Accept no new requests, finish the accepted ones within the drain time, and fail the rest."""
        log.info("stopping: finishing accepted requests, at most %g s", self._settings.drain_timeout)
        self._broker.stop_accepting()
        self._terminate_gateways()
        deadline = time.monotonic() + self._settings.drain_timeout
        while time.monotonic() < deadline and self._num_stop_requests < 2:
            self._broker.step(_POLL_MS // 10)
            self._release_dead_children()
            if self._broker.is_drained and not self._has_live_gateway:
                return
        self._broker.fail_all("the server is shutting down")
        deadline = time.monotonic() + _STOP_S / 2  # the gateways need time to pass the errors on
        while time.monotonic() < deadline and self._has_live_gateway:
            self._broker.step(_POLL_MS // 10)

    def _stop_children(self) -> None:
        """End every child. Ready children are asked to end; others are killed."""
        self._broker.fail_all("the server is shutting down")
        self._broker.stop_workers()
        self._terminate_gateways()
        for child in self._children:
            if not self._is_ready(child):
                child.kill()
        deadline = time.monotonic() + _STOP_S
        for child in self._children:
            if not child.wait(deadline):
                log.warning("%s did not end in time: killed", child.name)
                child.kill()
            if child.is_started:
                child.release(died_early=False)

    def _close(self) -> None:
        self._launch.close()
        for end in (self._wake_read, self._wake_write):
            end.close()

    # -- requests to stop ------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask for a graceful stop; if called again, for an immediate stop. Safe in signal handlers and threads."""
        self._num_stop_requests += 1
        with suppress(OSError):
            self._wake_write.send(b"\0")

    def request_reload(self) -> None:
        """Ask to read all keys again. Safe in signal handlers."""
        self._is_reload_requested = True
        with suppress(OSError):
            self._wake_write.send(b"\0")

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, and read the keys again on SIGHUP, inside this context. Main thread only."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            self.request_reload() if signum == signal.SIGHUP else self.request_stop()

        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {signum: signal.signal(signum, handle) for signum in signals}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @property
    def _should_stop(self) -> bool:
        return self._num_stop_requests > 0 or self._broker.termination_requested

    # -- supervision -----------------------------------------------------------------------------------

    @property
    def _children(self) -> list[ChildProcess]:
        return [*self._workers.values(), *self._gateways]

    @property
    def _has_live_gateway(self) -> bool:
        return any(gateway.is_alive for gateway in self._gateways)

    def _is_ready(self, child: ChildProcess) -> bool:
        if isinstance(child, GatewayProcess):
            return child.is_ready
        return self._broker.is_worker_ready(child.name)

    def _clear_wake_up(self) -> None:
        with suppress(BlockingIOError):
            self._wake_read.recv(64)

    def _announce_readiness(self) -> None:
        for gateway in self._gateways:
            if gateway.has_become_ready():
                log.info("HTTP is ready on %s port %s", self._settings.http_address, self._settings.http_port)
        if not self._has_been_ready and all(self._is_ready(child) for child in self._children):
            self._has_been_ready = True
            log.info("all set, ready to serve request!")
            self._on_ready()

    def _reload(self) -> None:
        self._is_reload_requested = False
        self._broker.reload_keys()
        for gateway in self._gateways:
            gateway.reload()

    def _replace_hung_workers(self) -> None:
        for name in self._broker.hung_workers(silent_s=_SILENT_S):
            worker = self._workers[name]
            worker.kill()
            # This comes before the log line: a program that reads the line must not find the worker still ready.
            self._broker.worker_lost(name)
            log.error("%s does not answer: replacing it", name)
            self._release(worker, died_early=False)

    def _keep_alive(self, child: ChildProcess) -> None:
        now = time.monotonic()
        if not child.is_started:
            if now >= child.restart_at:
                self._spawn(child)
        elif not child.is_alive:
            self._on_death(child)
        elif now - child.started_at > _START_S and not self._is_ready(child):
            log.error("%s was not ready within %g s: replacing it", child.name, _START_S)
            child.kill()

    def _on_death(self, child: ChildProcess) -> None:
        """Release a dead child, so that it is started again. Raises StartError if a new start would not help."""
        was_ready = self._is_ready(child)
        self._broker.step(0)  # the broker may not have read the child's last messages yet
        exit_code = self._release(child, died_early=not was_ready)
        refusal = self._broker.worker_lost(child.name) if child.name in self._workers else None
        if refusal is not None and not was_ready and not self._has_been_ready:
            raise StartError(refusal)
        if child.num_early_deaths >= _MAX_EARLY_DEATHS and not self._broker.has_ready_worker:
            reason = refusal or f"exit code {exit_code}"
            raise StartError(f"{child.name} died {child.num_early_deaths} times before it was ready: {reason}")
        log.error("%s died, exit code %s: replacing it", child.name, exit_code)

    def _release_dead_children(self) -> None:
        """Release dead children without replacing them.

        The descriptor of a dead child stays readable, so without this method each `step` would return at once.
        """
        for child in self._children:
            if child.is_started and not child.is_alive:
                self._release(child, died_early=False)
                if child.name in self._workers:
                    self._broker.worker_lost(child.name)

    def _spawn(self, child: ChildProcess) -> None:
        child.spawn()
        self._broker.watch(child.sentinel)

    def _release(self, child: ChildProcess, *, died_early: bool) -> int | None:
        self._broker.unwatch(child.sentinel)
        return child.release(died_early=died_early)

    def _terminate_gateways(self) -> None:
        for gateway in self._gateways:
            gateway.terminate()
