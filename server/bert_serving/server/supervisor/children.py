"""Keeps the workers and the gateways of a server running.

Rules of this file:
- A child whose process has died or hangs is started again, at once or after a pause (see backoff.py).
- Until all children have been ready once, a child that cannot start ends the server with the reason in one line.
  After that, children never end the server: the start is tried again and again.
- Nothing waits for a process. A process that was killed is released when it is dead. If the system does not end it
  (it may wait for a disk or a GPU driver), it is left behind, and its replacement runs meanwhile.
- A worker that serves is replaced without a gap: its successor is started beside it, and takes over its name and
  its batches when it is ready. If the successor cannot start, the worker stays.

All times are those of the loop's clock, so a pause of the whole server makes no child look silent.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from ..broker.broker import Broker
from ..settings import Settings
from ..signals import RELOAD_CERTIFICATE, RELOAD_KEYS
from .backoff import Backoff
from .listeners import http_listeners
from .memory import MemoryWatch
from .process import ChildProcess, GatewayProcess, GatewayProgram, Program, State
from .rollout import Reason, Rollout
from .startup import StartError

log = logging.getLogger(__name__)

_SILENT_S = 30.0  # heartbeats come every second; only a very long text in the tokenizer delays them
_KILL_S = 10.0  # if a process takes longer to end after SIGKILL, this is logged
_STOP_S = 2.0
_MAX_EARLY_DEATHS = 3


@dataclass(eq=False)
class Child:
    """A worker or a gateway that should always run.

    process: the process that serves, or that is being started; None until the next start. successor: a process
    that is being started to take its place.
    """

    program: Program
    backoff: Backoff = field(default_factory=Backoff)
    process: ChildProcess | None = None
    successor: ChildProcess | None = None

    @property
    def name(self) -> str:
        """The name in logs and in the status."""
        return self.program.name

    @property
    def is_ready(self) -> bool:
        """Whether its process can serve."""
        return self.process is not None and self.process.has_been_ready

    @property
    def processes(self) -> list[ChildProcess]:
        """The processes that run for this child. They may be dead, but they are not released yet."""
        return [process for process in (self.process, self.successor) if process is not None]

    def drop_process(self) -> None:
        """Let the successor take the place of a process that has ended or is being killed."""
        self.process, self.successor = self.successor, None
        if self.process is None:
            self.program.forget()


class Children:
    """All child processes. Only the thread of the server's loop may call the methods."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        workers: Mapping[str, Program],
        gateways: Sequence[GatewayProgram],
    ) -> None:
        self.has_been_ready = False
        self._broker = broker
        self._settings = settings
        self._workers = {name: Child(program) for name, program in workers.items()}
        self._gateways = [Child(program) for program in gateways]
        self._killed: list[tuple[str, ChildProcess]] = []  # names, and processes that end soon
        self._left_behind: list[tuple[str, ChildProcess]] = []
        self._rollout = Rollout()
        limit = settings.max_worker_rss
        self._memory = MemoryWatch(None if limit is None else limit << 20)

    def __iter__(self) -> Iterator[Child]:
        return iter([*self._workers.values(), *self._gateways])

    @property
    def are_ready(self) -> bool:
        """Whether all children can serve now."""
        return all(child.is_ready for child in self)

    @property
    def pids(self) -> dict[str, list[int]]:
        """The ids of the processes of each child, by its name."""
        return {child.name: [process.pid for process in child.processes] for child in self}

    @property
    def have_live_gateway(self) -> bool:
        """Whether a gateway runs."""
        return any(process.state is State.RUNNING for each in self._gateways for process in each.processes)

    # -- every turn of the loop ------------------------------------------------------------------------

    def start_missing(self) -> None:
        """Start the children without a process, unless they must pause. Raises StartError like `release_dead`."""
        for child in self:
            if child.process is None and self._now >= child.backoff.restart_at:
                child.process = self._spawn(child)

    def note_readiness(self) -> None:
        """Find out which processes have become ready; let a successor that is ready take over."""
        for gateway in self._gateways:
            if isinstance(gateway.process, GatewayProcess) and gateway.process.hear(self._now):
                log.info("HTTP is ready on %s", " and ".join(http_listeners(self._settings)))
        for worker in self._workers.values():
            ready_pid = self._broker.ready_pid(worker.name)
            for process in worker.processes:
                process.has_been_ready |= process.pid == ready_pid
            if worker.successor is not None and worker.successor.has_been_ready:
                self._take_over(worker)

    def release_dead(self) -> None:
        """Release the processes that have ended, so that they can be started again.

        Raises StartError if a child cannot start, and if not all children have been ready before.
        """
        self._release_killed()
        if all(process.state is State.RUNNING for child in self for process in child.processes):
            return
        # First read the last messages. Nothing may be sent to a dead worker: its batches would become suspects.
        self._broker.read_worker_messages()
        self.note_readiness()
        for child in self:
            if child.successor is not None and child.successor.state is State.DEAD:
                process, child.successor = child.successor, None
                self._on_failed_successor(child, self._release(child.name, process))
            if child.process is not None and child.process.state is State.DEAD:
                self._on_death(child, child.process)

    def replace_hung(self) -> None:
        """Kill the processes that do not answer, or that were not ready in time. Raises StartError, as above."""
        for name, reason in self._broker.hung_workers(silent_s=_SILENT_S).items():
            if (process := self._workers[name].process) is not None:
                self._kill(self._workers[name], process, reason)
        limit_s = self._settings.start_timeout
        for child in self:
            for process in child.processes:
                if process.is_silent(self._now, _SILENT_S):
                    self._kill(child, process, "does not answer")
                elif not process.has_been_ready and self._now - process.started_at > limit_s:
                    self._kill(child, process, f"was not ready within {limit_s:g} s")

    def replace_running(self) -> None:
        """Start the successor of a worker that must be replaced, if no other worker is being replaced."""
        for name in self._broker.outdated_workers:
            self._rollout.request(name, Reason.OUTDATED)
        ready = {
            name: child.process.pid
            for name, child in self._workers.items()
            if child.process is not None and child.is_ready and self._now >= child.backoff.restart_at
        }
        for name in self._memory.too_large(ready, self._now):
            self._rollout.request(name, Reason.MEMORY)
        if (found := self._rollout.next(ready)) is None:
            return
        name, reason = found
        log.info("replacing %s: %s", name, reason.value)
        self._workers[name].successor = self._spawn(self._workers[name])
        if self._workers[name].successor is None:
            self._rollout.failed(name)

    # -- requests --------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Replace all workers, one at a time, so that they load the model's folder as it is now."""
        for name in self._workers:
            self._rollout.request(name, Reason.RELOAD)

    def reload_keys(self) -> None:
        """Tell the gateways to read their API keys again."""
        self._signal_gateways(RELOAD_KEYS)

    def reload_certificate(self) -> None:
        """Tell the gateways to read their TLS certificate again."""
        self._signal_gateways(RELOAD_CERTIFICATE)

    def _signal_gateways(self, signum: signal.Signals) -> None:
        """Send a signal that is blocked when a child starts, so that it cannot end a gateway."""
        for gateway in self._gateways:
            if gateway.process is not None:
                gateway.process.send_signal(signum)

    def terminate_gateways(self) -> None:
        """Ask the gateways to finish their requests and to end."""
        for gateway in self._gateways:
            for process in gateway.processes:
                process.send_signal(signal.SIGTERM)

    def forget_dead(self) -> None:
        """Release the processes that have ended, without counting their deaths.

        The descriptor of a dead process stays readable, so without this method the loop would never wait.
        """
        self._release_killed()
        for child in self:
            for process in child.processes:
                if process.state is State.DEAD:
                    self._release(child.name, process)
                    child.process = None if process is child.process else child.process
                    child.successor = None if process is child.successor else child.successor

    def stop(self) -> None:
        """End every process: ready ones are asked to end, others are killed. Takes a few seconds at most."""
        self._broker.stop_workers()
        self.terminate_gateways()
        for child in self:
            for process in child.processes:
                if process is child.successor or not process.has_been_ready:
                    process.kill(self._now)
        left = _wait_for_end([process for child in self for process in child.processes], _STOP_S)
        for process in left:
            log.warning("process %d did not end in time: killed", process.pid)
            process.kill(self._now)
        killed = [process for _, process in (*self._killed, *self._left_behind)]
        for process in _wait_for_end([*left, *killed], _STOP_S):
            log.error("process %d cannot be killed: left behind", process.pid)
            process.abandon()

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._broker.clock.now

    def _spawn(self, child: Child) -> ChildProcess | None:
        """Start a process; return None if the system refuses, as it may have too few processes or descriptors."""
        try:
            process = child.program.spawn(self._now)
        except OSError as exc:
            log.error("cannot start %s: %s", child.name, exc)
            self._count_death(child, f"cannot start the process: {exc}", was_ready=False)
            return None
        self._broker.watch(process.sentinel)
        return process

    def _take_over(self, worker: Child) -> None:
        old, worker.process, worker.successor = worker.process, worker.successor, None
        self._rollout.finished(worker.name)
        if old is not None:
            old.kill(self._now)
            self._killed.append((worker.name, old))
        log.info("%s was replaced", worker.name)

    def _on_death(self, child: Child, process: ChildProcess) -> None:
        child.drop_process()
        self._rollout.finished(child.name)
        exit_code, refusal = self._release(child.name, process)
        reason = refusal or f"exit code {exit_code}"
        self._count_death(child, reason, was_ready=process.has_been_ready, refusal=refusal)
        log.error("%s died, exit code %s: replacing it", child.name, exit_code)

    def _on_failed_successor(self, child: Child, end: tuple[int | None, str | None]) -> None:
        exit_code, refusal = end
        reason = refusal or f"exit code {exit_code}"
        self._count_death(child, reason, was_ready=False)
        if self._rollout.failed(child.name) is Reason.OUTDATED and child.process is not None:
            # It gets no batches, so nothing is lost. Without it, its successor may have enough memory to start.
            self._kill(child, child.process, f"has an old model, and its successor ended ({reason})")
        else:
            log.error("%s was not replaced, it continues: its successor ended: %s", child.name, reason)

    def _kill(self, child: Child, process: ChildProcess, reason: str) -> None:
        """Kill a process that runs. It is released later, when it is dead."""
        process.kill(self._now)
        self._killed.append((child.name, process))
        if child.name in self._workers:
            # This comes before the log line: a program that reads the line must not find the worker still ready.
            self._broker.worker_lost(child.name, process.pid)
        if process is child.successor:
            log.error("%s was not replaced, it continues: its successor %s", child.name, reason)
            child.successor = None
            self._rollout.failed(child.name)
        else:
            log.error("%s %s: replacing it", child.name, reason)
            child.drop_process()
            self._rollout.finished(child.name)
        self._count_death(child, reason, was_ready=process.has_been_ready)

    def _count_death(self, child: Child, reason: str, *, was_ready: bool, refusal: str | None = None) -> None:
        child.backoff.died(self._now, was_ready=was_ready)
        if child.name in self._workers:
            self._broker.count_worker_death(child.name)
        else:
            self._broker.count_gateway_death(child.name)
        if self.has_been_ready or was_ready:
            return
        if refusal is not None:
            raise StartError(refusal)
        deaths = child.backoff.num_early_deaths
        if deaths >= _MAX_EARLY_DEATHS:
            raise StartError(f"{child.name} died {deaths} times before it was ready: {reason}")

    def _release(self, name: str, process: ChildProcess) -> tuple[int | None, str | None]:
        """Release a dead process; return its exit code, and why it refused to serve, if it did."""
        self._broker.unwatch(process.sentinel)
        refusal = self._broker.worker_ended(name, process.pid) if name in self._workers else None
        exit_code = process.exit_code
        process.close()
        return exit_code, refusal

    def _release_killed(self) -> None:
        for name, process in self._killed[:]:
            assert process.killed_at is not None
            if process.state is State.DEAD:
                self._killed.remove((name, process))
                exit_code, _ = self._release(name, process)
                log.info("%s: the process that was killed has ended, exit code %s", name, exit_code)
            elif self._now - process.killed_at > _KILL_S:
                self._killed.remove((name, process))
                self._left_behind.append((name, process))
                log.error("%s: process %d was killed but does not end: left behind", name, process.pid)
        for name, process in self._left_behind[:]:
            if process.state is State.DEAD:
                self._left_behind.remove((name, process))
                self._release(name, process)


def _wait_for_end(processes: Iterable[ChildProcess], limit_s: float) -> list[ChildProcess]:
    """Wait until the processes are dead or the time is over; return those that are not dead."""
    deadline = time.monotonic() + limit_s
    left = [process for process in processes if process.state is not State.DEAD]
    while left and (rest_s := deadline - time.monotonic()) > 0:
        wait([process.sentinel for process in left], rest_s)
        left = [process for process in left if process.state is not State.DEAD]
    return left
