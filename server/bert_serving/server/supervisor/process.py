"""A child process that should always run: how to start it, end it, and start it again after it died."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from . import child

_MAX_PAUSE_S = 30.0

# Children are spawned, not forked, so that they get no state and no threads of the server process.
spawn_context = multiprocessing.get_context("spawn")


@dataclass
class ChildProcess:
    """One child, which may be started many times.

    target: the function that the child runs with kwargs, as `module:function`. scratch_dir, env: see `child.run`.
    started_at, restart_at: monotonic seconds. num_early_deaths: how many times in a row the child
    died before it was ready.
    """

    name: str
    target: str
    kwargs: Mapping[str, object]
    verbose: bool
    scratch_dir: str
    env: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    restart_at: float = 0.0
    num_early_deaths: int = 0
    _process: BaseProcess | None = None

    @property
    def is_started(self) -> bool:
        """Whether the process was started and has not been released since. It may be dead."""
        return self._process is not None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """A file descriptor that is readable once the process is dead."""
        assert self._process is not None
        return self._process.sentinel

    def spawn(self) -> None:
        """Start the process."""
        args = (self.target, self.name, self.verbose, self.scratch_dir, self.kwargs, self.env)
        self._process = spawn_context.Process(target=child.run, args=args, name=self.name)
        # Starting the resource tracker unblocks SIGINT in this process. So start it before the block below.
        resource_tracker.ensure_running()
        # Ctrl-C sends SIGINT to the whole process group, but only the server decides when its children end. The
        # child inherits the blocked signal, so that not even its first imports can be interrupted.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.started_at = time.monotonic()

    def terminate(self) -> None:
        """Ask a live process to end."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def wait(self, deadline: float) -> bool:
        """Wait until the process ends or the deadline (monotonic seconds) passes; return whether it has ended."""
        if self._process is not None:
            self._process.join(max(0.0, deadline - time.monotonic()))
        return not self.is_alive

    def release(self, *, died_early: bool) -> int | None:
        """Release the dead process and set when to start it again; return its exit code.

        A process that had been ready may start again at once. Otherwise there is a pause, which doubles with each
        early death.
        """
        assert self._process is not None
        self._process.join()
        exit_code = self._process.exitcode
        self._process.close()
        self._process = None
        self.num_early_deaths = self.num_early_deaths + 1 if died_early else 0
        pause = 2.0 ** (self.num_early_deaths - 1) if died_early else 0.0
        self.restart_at = time.monotonic() + min(pause, _MAX_PAUSE_S)
        return exit_code


@dataclass(kw_only=True)
class GatewayProcess(ChildProcess):
    """A gateway. It sends a message through `ready_pipe` when it accepts HTTP requests."""

    ready_pipe: Connection
    is_ready: bool = False

    def has_become_ready(self) -> bool:
        """Read the pipe; return True once for each start, when the gateway is ready."""
        if self.is_ready or not self.ready_pipe.poll():
            return False
        self.ready_pipe.recv_bytes()
        self.is_ready = True
        return True

    def reload(self) -> None:
        """Let a gateway that serves read its keys again. One that is being started reads them anyway."""
        if self.is_ready and self._process is not None and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGHUP)  # it is not reaped before `release`, so the pid is its own

    def release(self, *, died_early: bool) -> int | None:
        """See ChildProcess."""
        self.is_ready = False
        return super().release(died_early=died_early)
