"""The server process: runs the broker and the child processes in one loop.

    run:   main loop (starts the children) -> drain -> stop children -> close

This process never loads torch, so that no model can crash it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ..settings import Settings
from .children import Children
from .garbage import GarbageCollection
from .launch import Launch
from .process_metrics import ProcessMetrics

log = logging.getLogger(__name__)

_CHECK_S = 0.25  # how often the children are checked; their end is noticed at once
_START_CHECK_S = 0.02  # the same until all have been ready, since somebody waits for that
_DRAIN_POLL_MS = 50
_STOP_S = 2.0


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
        self._num_stop_requests = 0
        self._reload_requested = False
        self._next_check_at = 0.0
        self._launch = Launch(settings, token_rows=token_rows)
        self._broker = self._launch.broker
        self._children = Children(self._broker, settings, self._launch.workers, self._launch.gateways)
        self._process_metrics = ProcessMetrics(self._launch.metrics.registry, self._running)
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._broker.watch(self._wake_read.fileno())

    # -- phases ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `request_stop` or TERMINATION. Raises StartError if the children cannot be started."""
        garbage = GarbageCollection(time.monotonic())
        try:
            self._children.start_missing()
            while not self._should_stop:
                self._turn()
                garbage.run_if_due(time.monotonic(), self._broker.num_held)
            self._drain()
        finally:
            self._stop_children()
            self._close()

    def _turn(self) -> None:
        """Do one turn of the main loop."""
        until_check_s = max(0.0, self._next_check_at - time.monotonic())
        has_news = self._broker.wait(math.ceil(until_check_s * 1000))  # a child has ended, or a signal has arrived
        if has_news:
            self._clear_wake_up()
            self._children.release_dead()  # before batches are sent, so that no dead worker gets one
        self._broker.handle_messages()
        if has_news or time.monotonic() >= self._next_check_at:
            self._check_children()
            self._process_metrics.look(time.monotonic())
            every_s = _CHECK_S if self._children.has_been_ready else _START_CHECK_S
            self._next_check_at = time.monotonic() + every_s

    def _check_children(self) -> None:
        """Start, replace and announce children, after the broker has read their messages.

        This is not done in every turn: under load the loop turns thousands of times in a second.
        """
        self._children.release_dead()
        self._children.note_readiness()
        self._children.replace_hung()
        self._children.start_missing()
        self._announce_readiness()
        self._reload_if_requested()
        if self._children.has_been_ready:
            self._children.replace_running()

    def _drain(self) -> None:
        """Accept no new requests, finish the accepted ones within the drain time, and fail the rest."""
        log.info("stopping: finishing accepted requests, at most %g s", self._settings.drain_timeout)
        self._broker.stop_accepting()
        self._children.terminate_gateways()
        deadline = time.monotonic() + self._settings.drain_timeout
        while time.monotonic() < deadline and self._num_stop_requests < 2:
            self._broker.step(_DRAIN_POLL_MS)
            self._children.forget_dead()
            if self._broker.is_drained and not self._children.have_live_gateway:
                return
        self._broker.fail_all("the server is shutting down")
        deadline = time.monotonic() + _STOP_S / 2  # the gateways need time to pass the errors on
        while time.monotonic() < deadline and self._children.have_live_gateway:
            self._broker.step(_DRAIN_POLL_MS)

    def _stop_children(self) -> None:
        self._broker.fail_all("the server is shutting down")
        self._children.stop()

    def _close(self) -> None:
        self._launch.close()
        for end in (self._wake_read, self._wake_write):
            end.close()

    def _running(self) -> dict[str, list[int]]:
        """Return the ids of the processes that run, by name."""
        return {"server": [os.getpid()], **self._children.pids}

    # -- signals ---------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask for a graceful stop; if called again, for an immediate stop. Safe in signal handlers and threads."""
        self._num_stop_requests += 1
        self._wake_up()

    def request_reload(self) -> None:
        """Ask to read all keys and the TLS certificate again, and to replace all workers, one at a time.

        The new workers load the model's folder as it is now. If not all children have been ready yet, the
        replacement begins when they are. Safe in signal handlers and threads.
        """
        self._reload_requested = True
        self._wake_up()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, and reload on SIGHUP, inside this context. Main thread only."""

        def stop(_signum: int, _frame: FrameType | None) -> None:
            self.request_stop()

        def reload(_signum: int, _frame: FrameType | None) -> None:
            self.request_reload()

        handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: reload}
        previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @property
    def _should_stop(self) -> bool:
        return self._num_stop_requests > 0 or self._broker.termination_requested

    def _wake_up(self) -> None:
        with suppress(OSError):
            self._wake_write.send(b"\0")

    def _clear_wake_up(self) -> None:
        with suppress(BlockingIOError):
            self._wake_read.recv(64)

    def _reload_if_requested(self) -> None:
        if self._reload_requested:
            self._reload_requested = False
            log.info("reload: reading keys and certificate again, and replacing the workers one at a time")
            self._broker.reload_keys()
            if self._launch.api_keys.reload():
                self._children.reload_keys()
            if self._launch.certificate is not None and self._launch.certificate.reload():
                self._children.reload_certificate()
            self._children.reload()

    # -- readiness -------------------------------------------------------------------------------------

    def _announce_readiness(self) -> None:
        if not self._children.has_been_ready and self._children.are_ready:
            self._children.has_been_ready = True
            log.info("server process %d", os.getpid())  # not before: a start that fails logs one line, the reason
            log.info("all set, ready to serve request!")
            self._on_ready()
