"""A process runs, was killed, or is dead; a child that has died is started again, at once or after a pause."""

from __future__ import annotations

import os
import signal
from multiprocessing import Pipe

import pytest
from bert_serving.server.supervisor.backoff import Backoff
from bert_serving.server.supervisor.memory import MemoryWatch
from bert_serving.server.supervisor.process import ChildProcess, GatewayProcess, State


class FakeProcess:
    """A process of multiprocessing that cannot be killed until `ends` is called."""

    pid = 2**31 - 1  # no process has this id
    exitcode: int | None = None
    num_kills = 0

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.num_kills += 1

    def close(self) -> None: ...


def test_a_killed_process_is_dead_only_when_the_system_has_ended_it() -> None:
    fake = FakeProcess()
    process = ChildProcess(fake, started_at=0.0)
    assert process.state is State.RUNNING
    process.kill(5.0)  # returns at once, although the process does not end
    assert (process.state, process.killed_at, fake.num_kills) == (State.KILLED, 5.0, 1)
    fake.exitcode = -signal.SIGKILL
    assert (process.state, process.exit_code) == (State.DEAD, -9)


def test_no_signal_is_sent_to_a_process_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: sent.append((pid, signum)))
    fake = FakeProcess()
    process = ChildProcess(fake, started_at=0.0)
    process.send_signal(signal.SIGTERM)
    fake.exitcode = 0
    process.send_signal(signal.SIGTERM)
    assert sent == [(fake.pid, signal.SIGTERM)]


def test_a_gateway_is_ready_with_its_first_byte_and_silent_after_its_last() -> None:
    reader, writer = Pipe(duplex=False)
    gateway = GatewayProcess(FakeProcess(), 0.0, reader)
    assert not gateway.hear(1.0)
    assert not gateway.is_silent(1e9, 30.0)  # a gateway that starts is limited by start_timeout instead
    os.write(writer.fileno(), b"\0")
    assert gateway.hear(2.0)
    assert gateway.has_been_ready
    os.write(writer.fileno(), b"\0" * 3)
    assert not gateway.hear(40.0)  # it was ready before
    assert not gateway.is_silent(70.0, 30.0)
    assert gateway.is_silent(70.5, 30.0)
    writer.close()
    gateway.hear(71.0)  # the end of the pipe is not a sign of life
    assert gateway.is_silent(71.0, 30.0)
    gateway.close()


# -- when to start again -------------------------------------------------------------------------------


def pause_after(backoff: Backoff, *, was_ready: bool) -> float:
    """Let the child die; return the seconds until it may start again."""
    backoff.died(100.0, was_ready=was_ready)
    return backoff.restart_at - 100.0


def test_a_child_that_was_ready_starts_again_at_once() -> None:
    assert pause_after(Backoff(), was_ready=True) == 0


def test_pauses_double_with_each_early_death_up_to_4_s() -> None:
    backoff = Backoff()
    assert [pause_after(backoff, was_ready=False) for _ in range(2000)][:6] == [1, 2, 4, 4, 4, 4]
    assert backoff.num_early_deaths == 2000


def test_a_child_that_was_ready_has_no_early_deaths_any_more() -> None:
    backoff = Backoff()
    pause_after(backoff, was_ready=False)
    pause_after(backoff, was_ready=True)
    assert backoff.num_early_deaths == 0
    assert pause_after(backoff, was_ready=False) == 1


# -- memory --------------------------------------------------------------------------------------------


def test_a_worker_that_grows_above_the_limit_is_found_about_once_a_second() -> None:
    sizes = {1: 60, 2: 60}
    watch = MemoryWatch(100, sizes.__getitem__)
    workers = {"worker-0": 1, "worker-1": 2}
    assert watch.too_large(workers, 1.0) == []
    sizes[2] = 101
    assert watch.too_large(workers, 1.5) == []  # too early to look again
    assert watch.too_large(workers, 2.0) == ["worker-1"]
    assert watch.too_large({"worker-0": 1}, 3.0) == []


def test_a_worker_that_is_above_the_limit_from_its_start_is_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {1: 300 << 20, 7: 300 << 20}
    watch = MemoryWatch(200 << 20, sizes.__getitem__)
    assert [watch.too_large({"worker-0": 1}, now) for now in (1.0, 2.0, 3.0)] == [[], [], []]
    assert [record.getMessage() for record in caplog.records] == [
        "worker-0 uses 300 MiB with the model alone: -max_worker_rss 200 is too low and has no effect"
    ]
    assert watch.too_large({"worker-0": 7}, 4.0) == []
    sizes[7] = 100 << 20
    assert watch.too_large({"worker-0": 7}, 5.0) == []


def test_without_a_limit_no_memory_is_read() -> None:
    watch = MemoryWatch(None, rss_of=lambda _: pytest.fail("read"))
    assert watch.too_large({"worker-0": 1}, 1.0) == []
