"""How the server keeps its children running: decisions with invented processes and an invented broker."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from multiprocessing import Pipe

import pytest
from bert_serving.server.broker.loop_clock import LoopClock
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor import children as children_module
from bert_serving.server.supervisor.children import Children
from bert_serving.server.supervisor.process import ChildProcess, GatewayProcess
from bert_serving.server.supervisor.startup import StartError


class FakeProcess:
    """A process of multiprocessing. cannot_be_killed: it stays alive after SIGKILL."""

    def __init__(self, pid: int) -> None:
        self.pid = self.sentinel = pid
        self.exitcode: int | None = None
        self.cannot_be_killed = False
        self.is_closed = False

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        if not self.cannot_be_killed:
            self.exitcode = -9

    def close(self) -> None:
        assert not self.is_alive()
        self.is_closed = True


class FakeBroker:
    """The broker as the children see it. calls: what happened, in this order.

    deaths, gateway_deaths: the counted ones.
    """

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.ready: dict[str, int] = {}
        self.unread: dict[str, int] = {}  # processes whose Ready message was not read yet
        self.refusals: dict[int, str] = {}
        self.hung: dict[str, str] = {}
        self.outdated_workers: list[str] = []
        self.watched: set[int] = set()
        self.calls: list[str] = []
        self.deaths: list[str] = []
        self.gateway_deaths: list[str] = []

    def watch(self, descriptor: int) -> None:
        self.watched.add(descriptor)

    def unwatch(self, descriptor: int) -> None:
        self.watched.remove(descriptor)

    def ready_pid(self, name: str) -> int | None:
        return self.ready.get(name)

    def hung_workers(self, *, silent_s: float) -> dict[str, str]:
        return self.hung

    def read_worker_messages(self) -> None:
        self.calls.append("read")
        self.ready |= self.unread
        self.unread = {}

    def worker_lost(self, name: str, pid: int) -> None:
        if self.ready.get(name) == pid:
            self.calls.append(f"lost {pid}")
            del self.ready[name]

    def count_worker_death(self, name: str) -> None:
        self.deaths.append(name)

    def count_gateway_death(self, name: str) -> None:
        self.gateway_deaths.append(name)

    def worker_ended(self, name: str, pid: int) -> str | None:
        self.worker_lost(name, pid)
        return self.refusals.pop(pid, None)


@dataclass
class FakeProgram:
    """A program whose processes are FakeProcesses with the ids 1, 2 ..."""

    name: str
    processes: list[FakeProcess]
    error: OSError | None = field(default=None)
    num_forgotten: int = 0

    def forget(self) -> None:
        self.num_forgotten += 1

    def spawn(self, now: float) -> ChildProcess:
        if self.error is not None:
            raise self.error
        self.processes.append(FakeProcess(len(self.processes) + 1))
        return ChildProcess(self.processes[-1], now)


class Stage:
    """A server's children after their first start, and the broker. processes: all that were started."""

    def __init__(self, *names: str, **settings: object) -> None:
        self.broker = FakeBroker()
        self.processes: list[FakeProcess] = []
        self.programs = {name: FakeProgram(name, self.processes) for name in names}
        self.children = Children(self.broker, Settings(**settings), self.programs, [])
        self.children.start_missing()

    def be_ready(self, name: str, pid: int) -> None:
        self.broker.ready[name] = pid
        self.children.note_readiness()

    def all_ready(self) -> Stage:
        for pid, name in enumerate(self.programs, 1):
            self.be_ready(name, pid)
        self.children.has_been_ready = True
        return self

    def die(self, pid: int, exit_code: int = -9) -> None:
        self.processes[pid - 1].exitcode = exit_code
        self.children.release_dead()

    def turn(self, seconds: float = 0.5) -> None:
        self.broker.clock.now += seconds
        self.children.start_missing()
        self.children.release_dead()
        self.children.note_readiness()
        self.children.replace_hung()
        self.children.replace_running()

    @property
    def alive(self) -> list[int]:
        return [process.pid for process in self.processes if process.is_alive()]


# -- metrics -------------------------------------------------------------------------------------------


def test_a_program_is_forgotten_when_its_process_dies_or_is_killed_and_not_when_another_takes_over() -> None:
    stage = Stage("w0").all_ready()
    program = stage.programs["w0"]
    stage.die(1)
    assert (program.num_forgotten, stage.children.pids) == (1, {"w0": []})
    stage.children.start_missing()
    stage.be_ready("w0", 2)
    stage.broker.hung = {"w0": "does not answer"}
    stage.children.replace_hung()
    assert (program.num_forgotten, stage.children.pids) == (2, {"w0": []})
    stage.broker.hung = {}
    stage.turn()
    stage.be_ready("w0", 3)
    stage.children.reload()
    stage.turn()
    assert stage.children.pids == {"w0": [3, 4]}
    stage.be_ready("w0", 4)
    assert (program.num_forgotten, stage.children.pids) == (2, {"w0": [4]})
    assert stage.broker.deaths == ["w0", "w0"]  # a reload is no fault


# -- deaths --------------------------------------------------------------------------------------------


def test_a_worker_that_was_ready_is_started_again_at_once() -> None:
    stage = Stage("w0").all_ready()
    stage.die(1)
    stage.children.start_missing()
    assert stage.alive == [2]
    assert stage.processes[0].is_closed
    assert stage.broker.watched == {2}


def test_a_server_that_was_ready_never_ends_because_its_children_die() -> None:
    stage = Stage("w0").all_ready()
    for pid in range(1, 40):
        stage.broker.refusals[pid] = "no such model"
        stage.die(pid)
        stage.turn(4.0)  # the longest pause
        assert stage.alive == [pid + 1]


def test_the_third_early_death_ends_a_server_that_was_never_ready() -> None:
    stage = Stage("w0", "w1")
    stage.be_ready("w1", 2)
    stage.die(1)
    stage.turn(1.0)
    stage.die(3)
    stage.turn(2.0)
    with pytest.raises(StartError, match="w0 died 3 times before it was ready: exit code 1"):
        stage.die(4, exit_code=1)


def test_a_model_that_cannot_be_loaded_ends_a_server_that_was_never_ready() -> None:
    stage = Stage("w0")
    stage.broker.refusals[1] = "the model has no weights"
    with pytest.raises(StartError, match=r"^the model has no weights$"):
        stage.die(1, exit_code=0)


def test_the_last_messages_of_a_dead_worker_are_read_before_its_batches_go_back() -> None:
    stage = Stage("w0")
    stage.broker.unread = {"w0": 1}
    stage.die(1)
    assert stage.broker.calls == ["read", "lost 1"]
    stage.children.start_missing()  # it had been ready, so there is no pause
    assert stage.alive == [2]


@pytest.mark.parametrize("error", [BlockingIOError(11, "no more processes"), OSError(24, "too many open files")])
def test_a_process_that_the_system_refuses_is_tried_again_later(error: OSError) -> None:
    stage = Stage("w0").all_ready()
    stage.programs["w0"].error = error
    stage.die(1)
    for _ in range(20):
        stage.turn(4.0)
    assert stage.alive == []
    stage.programs["w0"].error = None
    stage.turn(4.0)
    stage.turn(0.0)
    assert stage.alive == [2]


def test_a_first_start_that_the_system_refuses_three_times_ends_the_server() -> None:
    stage = Stage("w0")
    stage.programs["w0"].error = OSError(24, "too many open files")
    stage.die(1)
    stage.turn(1.0)
    with pytest.raises(StartError, match=r"w0 died 3 times before it was ready: .*too many open files"):
        stage.turn(2.0)


# -- killing -------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    stage = Stage("w0").all_ready()
    stage.broker.hung = {"w0": "does not answer"}
    stage.children.replace_hung()
    stage.broker.hung = {}
    assert stage.broker.calls == ["lost 1"]
    stage.turn()
    assert (stage.alive, stage.broker.watched) == ([2], {2})


def test_a_process_that_cannot_be_killed_is_left_behind_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage("w0").all_ready()
    stage.processes[0].cannot_be_killed = True
    stage.broker.hung = {"w0": "does not answer"}
    stage.children.replace_hung()
    stage.broker.hung = {}
    stage.turn()
    assert stage.alive == [1, 2]
    stage.be_ready("w0", 2)
    for _ in range(30):
        stage.turn()
    assert [r.getMessage() for r in caplog.records if "left behind" in r.getMessage()] == [
        "w0: process 1 was killed but does not end: left behind"
    ]
    assert stage.broker.ready == {"w0": 2}
    stage.processes[0].exitcode = -9
    stage.turn()
    assert stage.processes[0].is_closed


def test_stopping_leaves_a_process_behind_that_cannot_be_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(children_module, "_STOP_S", 0.01)
    monkeypatch.setattr(FakeBroker, "stop_workers", lambda _: None, raising=False)
    stage = Stage("w0").all_ready()
    never_readable, writer = os.pipe()
    stage.processes[0].sentinel = never_readable
    stage.processes[0].cannot_be_killed = True
    stage.children.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "process 1 did not end in time: killed",
        "process 1 cannot be killed: left behind",
    ]
    os.close(never_readable)
    os.close(writer)


def test_a_worker_that_is_not_ready_within_start_timeout_is_replaced() -> None:
    stage = Stage("w0", start_timeout=50).all_ready()
    stage.die(1)
    stage.turn()  # starts process 2
    stage.turn(49.0)
    assert stage.alive == [2]
    stage.turn(1.5)
    stage.turn(1.0)
    assert stage.alive == [3]


def test_a_gateway_that_is_silent_is_replaced() -> None:
    class Gateway(FakeProgram):
        def spawn(self, now: float) -> ChildProcess:
            super().spawn(now)
            reader, writer = Pipe(duplex=False)
            os.write(writer.fileno(), b"\0")
            return GatewayProcess(self.processes[-1], now, reader)

    stage = Stage()
    stage.children = Children(stage.broker, Settings(), {}, [Gateway("gateway", stage.processes)])
    stage.turn()
    assert stage.children.are_ready
    stage.turn(30.0)
    assert stage.alive == [1]
    stage.turn(0.5)
    stage.turn()
    assert stage.alive == [2]
    assert (stage.broker.gateway_deaths, stage.broker.deaths) == (["gateway"], [])


# -- replacing workers that run ------------------------------------------------------------------------


def test_a_reload_starts_successors_one_at_a_time_and_ends_a_worker_when_its_successor_is_ready() -> None:
    stage = Stage("w0", "w1").all_ready()
    stage.children.reload()
    stage.turn()
    stage.turn()
    assert stage.alive == [1, 2, 3]
    stage.be_ready("w0", 3)
    assert stage.alive == [2, 3]
    stage.turn()
    assert stage.alive == [2, 3, 4]
    stage.be_ready("w1", 4)
    stage.turn()
    assert (stage.alive, stage.broker.watched) == ([3, 4], {3, 4})
    assert stage.broker.ready == {"w0": 3, "w1": 4}


def test_a_successor_that_cannot_load_the_model_leaves_the_worker_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage("w0", "w1").all_ready()
    stage.children.reload()
    stage.turn()
    stage.broker.refusals[3] = "the model has no weights"
    stage.die(3, exit_code=0)
    for _ in range(20):
        stage.turn()
    assert stage.alive == [1, 2]
    assert stage.broker.ready == {"w0": 1, "w1": 2}
    assert [r.getMessage() for r in caplog.records if "successor" in r.getMessage()] == [
        "w0 was not replaced, it continues: its successor ended: the model has no weights"
    ]


def test_a_successor_that_becomes_ready_and_dies_at_once_has_replaced_the_worker() -> None:
    stage = Stage("w0").all_ready()
    stage.children.reload()
    stage.turn()
    stage.broker.unread = {"w0": 2}
    stage.die(2)
    assert stage.alive == []
    stage.children.start_missing()
    assert stage.alive == [3]


def test_a_worker_that_dies_during_its_replacement_leaves_its_place_to_its_successor() -> None:
    stage = Stage("w0").all_ready()
    stage.children.reload()
    stage.turn()
    stage.die(1)
    stage.turn()
    assert stage.alive == [2]
    stage.be_ready("w0", 2)
    stage.turn()
    assert (stage.alive, stage.broker.watched) == ([2], {2})


def test_a_worker_with_an_older_model_is_replaced() -> None:
    stage = Stage("w0", "w1").all_ready()
    stage.broker.outdated_workers = ["w1"]
    stage.turn()
    assert stage.alive == [1, 2, 3]
    stage.broker.outdated_workers = []
    stage.be_ready("w1", 3)
    stage.turn()
    assert stage.alive == [1, 3]


def test_a_worker_with_an_older_model_makes_room_if_its_successor_cannot_start_beside_it() -> None:
    """The memory of a GPU may not be enough for two models, and a worker with an older model gets no batches."""
    stage = Stage("w0", "w1").all_ready()
    stage.broker.outdated_workers = ["w1"]
    stage.turn()
    stage.broker.refusals[3] = "CUDA out of memory"
    stage.broker.outdated_workers = []
    stage.die(3, exit_code=0)
    assert stage.alive == [1]
    stage.turn(4.0)
    assert stage.alive == [1, 4]


def test_a_worker_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("w0", "w1", max_worker_rss=100).all_ready()
    sizes = {1: 50, 2: 50, 3: 50}
    monkeypatch.setattr(stage.children._memory, "_rss_of", lambda pid: sizes[pid] << 20)
    stage.turn(1.0)
    sizes[2] = 101
    stage.turn(1.0)
    assert stage.alive == [1, 2, 3]
    stage.be_ready("w1", 3)
    stage.turn(1.0)
    stage.turn(1.0)
    assert stage.alive == [1, 3]


def test_a_successor_that_is_not_ready_in_time_is_killed_and_the_worker_stays() -> None:
    stage = Stage("w0", start_timeout=50).all_ready()
    stage.children.reload()
    stage.turn()
    assert stage.alive == [1, 2]
    for _ in range(20):
        stage.turn(5.0)
    assert (stage.alive, stage.broker.ready) == ([1], {"w0": 1})
