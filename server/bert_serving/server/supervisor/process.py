"""The processes that the server starts. Nothing in this file waits for a process."""

from __future__ import annotations

import enum
import multiprocessing
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import process as mp_process
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from prometheus_client.multiprocess import mark_process_dead

from ..logs import LogOptions
from ..signals import RELOAD_CERTIFICATE, RELOAD_KEYS
from . import child

# Children are spawned, not forked, so that they get no state and no threads of the server process.
spawn_context = multiprocessing.get_context("spawn")


class State(enum.Enum):
    """Whether a process runs. KILLED: it has got SIGKILL and must still end."""

    RUNNING = "running"
    KILLED = "killed"
    DEAD = "dead"


class ChildProcess:
    """One process of the server. It is never joined: it is released when its `state` is DEAD.

    started_at: time of the loop's clock. has_been_ready: whether the process has reported that it can serve.
    killed_at: when it was killed, by the loop's clock; None: it was not killed.
    """

    def __init__(self, process: BaseProcess, started_at: float) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.started_at = started_at
        self.has_been_ready = False
        self.killed_at: float | None = None
        self._process = process

    @property
    def state(self) -> State:
        """What the process does now."""
        if not self._process.is_alive():
            return State.DEAD
        return State.RUNNING if self.killed_at is None else State.KILLED

    @property
    def exit_code(self) -> int | None:
        """The exit code of a dead process; the negative number of a signal if a signal ended it."""
        return self._process.exitcode

    @property
    def sentinel(self) -> int:
        """A file descriptor that is readable once the process is dead."""
        return self._process.sentinel

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.state is State.RUNNING:
            os.kill(self.pid, signum)

    def kill(self, now: float) -> None:
        """Send SIGKILL. The process may end later: a process in uninterruptible sleep ends when the sleep ends."""
        self.killed_at = now
        with suppress(ProcessLookupError):
            self._process.kill()

    def is_silent(self, now: float, silent_s: float) -> bool:
        """Whether a process that was ready has sent nothing for `silent_s` seconds."""
        return False  # the broker hears the workers

    def close(self) -> None:
        """Release a dead process."""
        self._process.close()

    def abandon(self) -> None:
        """Leave a process behind that cannot be killed."""
        # When this program ends, multiprocessing waits for each child that it knows, and without a time limit.
        mp_process._children.discard(self._process)  # type: ignore[attr-defined]


class GatewayProcess(ChildProcess):
    """A gateway. It writes a byte to its pipe when it accepts HTTP requests, and one each second after that."""

    def __init__(self, process: BaseProcess, started_at: float, pipe: Connection) -> None:
        super().__init__(process, started_at)
        self._pipe = pipe
        self._heard_at = started_at
        os.set_blocking(pipe.fileno(), False)

    def hear(self, now: float) -> bool:
        """Read what the gateway has written; return whether it has become ready. now: time of the loop's clock."""
        was_ready = self.has_been_ready
        with suppress(BlockingIOError):
            if os.read(self._pipe.fileno(), 4096):  # nothing: the process has ended
                self.has_been_ready = True
                self._heard_at = now
        return self.has_been_ready and not was_ready

    def is_silent(self, now: float, silent_s: float) -> bool:
        """See ChildProcess."""
        return self.has_been_ready and now - self._heard_at > silent_s

    def close(self) -> None:
        """See ChildProcess."""
        self._pipe.close()
        super().close()


@dataclass(frozen=True)
class Program:
    """What a child runs. It may be started many times.

    target: the function that the child runs with kwargs, as `module:function`. scratch_dir, env: see `child.run`.
    """

    name: str
    target: str
    kwargs: Mapping[str, object]
    logs: LogOptions
    scratch_dir: str
    env: Mapping[str, str] = field(default_factory=dict)

    def spawn(self, now: float) -> ChildProcess:
        """Start a process. now: time of the loop's clock. Raises OSError if the system refuses."""
        return ChildProcess(self._start(self.kwargs), now)

    def forget(self) -> None:
        """Called when the process has ended or is being killed, and no other has taken its place."""

    def _start(self, kwargs: Mapping[str, object]) -> BaseProcess:
        args = (self.target, self.name, self.logs, self.scratch_dir, kwargs, self.env)
        process = spawn_context.Process(target=child.run, args=args, name=self.name)
        # Ctrl-C sends SIGINT to the whole process group, and the end of a terminal sends SIGHUP. Only the server
        # decides when its children end. A child inherits the blocked signals, so that not even its first imports
        # can be interrupted.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {RELOAD_KEYS, RELOAD_CERTIFICATE})
        try:
            resource_tracker.ensure_running()  # this unblocks SIGINT in this process, so block SIGINT after it
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process


@dataclass(frozen=True)
class GatewayProgram(Program):
    """What a gateway runs. env names the folder for the files of its metrics, which bear its name."""

    def forget(self) -> None:
        """Remove the gauges of the process from /metrics. Its counters stay: the next process continues them."""
        with suppress(OSError):  # such as a disk that has become read-only
            mark_process_dead(self.name, self.env["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]

    def spawn(self, now: float) -> GatewayProcess:
        """See Program. The process gets the argument `heartbeat`, the end of a pipe to this process."""
        pipe, childs_end = spawn_context.Pipe(duplex=False)
        try:
            with childs_end:
                return GatewayProcess(self._start({**self.kwargs, "heartbeat": childs_end}), now, pipe)
        except BaseException:
            pipe.close()
            raise
