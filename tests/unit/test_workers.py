"""What the broker believes about its workers, from the messages on a socket that the test fills."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

import pytest
import zmq
from bert_serving.protocol.workers import (
    RESULTS,
    Failed,
    Heartbeat,
    Ready,
    Refused,
    Result,
    WorkerMessage,
    worker_message_to_frames,
)
from bert_serving.server.broker.loop_clock import LoopClock
from bert_serving.server.broker.workers import Unreadable, Workers

from tests.support.model_facts import model_facts

NAME = "worker-0"


class FakeSocket:
    """A socket with frames to receive, and a list of the frames that were sent."""

    def __init__(self) -> None:
        self.inbox: deque[zmq.Frame] = deque()
        self.sent: list[bytes] = []

    def get(self, _option: int) -> int:
        return int(zmq.POLLIN) if self.inbox else 0

    def recv(self, _flags: int, *, copy: bool) -> zmq.Frame:
        return self.inbox.popleft()

    def send(self, frame: bytes, _flags: int, *, copy: bool) -> None:
        self.sent.append(frame)


class Stage:
    """The broker's view of one worker, and the socket and the clock behind it."""

    def __init__(self) -> None:
        self.socket = FakeSocket()
        self.clock = LoopClock()
        self.workers = Workers(self.socket, [NAME], self.clock)

    def hear(self, pid: int, message: WorkerMessage) -> list[object]:
        """Let a process send a message; return what the broker must act on."""
        return self.hear_frames(f"{NAME}#{pid}".encode(), *worker_message_to_frames(message))

    def hear_frames(self, *frames: object) -> list[object]:
        self.socket.inbox += [zmq.Frame(bytes(memoryview(frame))) for frame in frames]
        for frame in [*self.socket.inbox][:-1]:
            frame.more = True
        return [message for _, message in self.workers.messages()]

    @property
    def pid(self) -> int | None:
        return self.workers.views[NAME].pid

    def faults(self, idle: Sequence[str] = ()) -> Sequence[str]:
        return list(self.workers.faulty(silent_s=30.0, idle=idle, timeout_s=120.0).values())


@pytest.fixture
def stage() -> Stage:
    """A worker whose process 1 is ready."""
    stage = Stage()
    assert stage.pid is None
    stage.hear(1, Ready(model_facts()))
    assert stage.pid == 1
    return stage


def test_a_silent_worker_is_found_after_30_s_of_the_loops_clock(stage: Stage) -> None:
    stage.clock.now = 20.0
    stage.hear(1, Heartbeat(0.5))
    stage.clock.now = 50.0
    assert stage.faults() == []
    stage.clock.now = 50.5
    assert stage.faults() == ["does not answer"]
    stage.hear(1, Heartbeat(0.5))
    assert stage.faults() == []


def test_a_worker_is_not_silent_after_a_pause_of_the_server(stage: Stage) -> None:
    stage.clock.turn(1000.0)
    stage.clock.turn(1600.0)  # the whole server was stopped for ten minutes
    assert stage.faults() == []


def test_an_idle_worker_that_computes_nothing_is_found_after_the_timeout(stage: Stage) -> None:
    def faults(now: float, forward_age_s: float, idle: Sequence[str]) -> Sequence[str]:
        stage.clock.now = now
        stage.hear(1, Heartbeat(forward_age_s))
        return stage.faults(idle)

    assert faults(1000.0, 60.0, [NAME]) == []
    assert faults(1120.0, 180.0, [NAME]) == []
    assert faults(1120.5, 180.5, []) == []  # it has a batch, to which other limits apply
    assert faults(1121.0, 181.0, [NAME]) == []
    assert faults(1241.5, 301.5, [NAME]) == ["computes nothing"]
    assert faults(1242.0, 0.5, [NAME]) == []


def test_a_successor_takes_the_name_and_its_predecessor_is_not_heard_any_more(stage: Stage) -> None:
    assert stage.hear(2, Heartbeat(0.1)) == []  # it has not become ready
    assert stage.hear(2, Ready(model_facts(pid=2, fingerprint="B"))) != []
    assert stage.pid == 2
    stage.clock.now = 31.0
    assert stage.hear(1, Heartbeat(0.1)) == []
    assert stage.hear(1, Failed(7, "late")) == []
    assert stage.faults() == ["does not answer"]
    stage.workers.send(NAME, [b"BATCH"])
    assert stage.socket.sent == [b"worker-0#2", b"BATCH"]


def test_the_end_of_a_predecessor_does_not_end_its_successor(stage: Stage) -> None:
    stage.hear(2, Ready(model_facts()))
    assert not stage.workers.lost(NAME, 1)
    assert stage.pid == 2
    assert stage.workers.lost(NAME, 2)
    assert stage.pid is None


def test_the_late_message_of_a_successor_that_was_killed_changes_nothing(stage: Stage) -> None:
    stage.hear(1, Ready(model_facts(pid=1)))
    assert not stage.workers.lost(NAME, 2)  # the successor is killed, while its Ready is on the way
    assert stage.hear(2, Ready(model_facts(pid=2))) == []
    assert stage.workers.views[NAME].pid == 1
    stage.workers.take_refusal(2)  # it has ended; the system gives its id to another process
    assert len(stage.hear(2, Ready(model_facts(pid=2)))) == 1


def test_a_refusal_of_a_successor_leaves_the_worker_ready(stage: Stage) -> None:
    assert stage.hear(2, Refused("no weights")) == []
    assert stage.pid == 1
    assert stage.workers.take_refusal(1) is None
    assert stage.workers.take_refusal(2) == "no weights"
    assert stage.workers.take_refusal(2) is None


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"RESULT"],
        [b"NONSENSE", b"{}"],
        [b"RESULT", b"{"],
        [b"RESULT", json.dumps({"batch_id": 1, "part_results": [{"array": {}}]}).encode()],
        [b"HEARTBEAT", b"{}"],
    ],
)
def test_an_unreadable_message_is_reported_and_the_third_one_replaces_the_worker(
    stage: Stage, frames: list[bytes]
) -> None:
    sender = f"{NAME}#1".encode()
    assert stage.hear_frames(sender, *frames) == [Unreadable()]
    assert stage.hear_frames(sender, *frames) == [Unreadable()]
    assert stage.faults() == []
    assert stage.hear_frames(sender, *frames) == [Unreadable()]
    assert stage.faults() == ["sends messages that cannot be read"]
    stage.workers.lost(NAME, 1)
    stage.hear(2, Ready(model_facts()))
    assert stage.faults() == []


def test_results_come_from_an_address_of_their_own(stage: Stage) -> None:
    result = Result(1, [])
    assert stage.hear_frames(f"{NAME}#1".encode() + RESULTS, *worker_message_to_frames(result)) == [result]
    assert stage.hear_frames(f"{NAME}#2".encode() + RESULTS, *worker_message_to_frames(result)) == []


@pytest.mark.parametrize("sender", [b"", b"worker-0", b"worker-9#1", b"worker-0#x", b"\xff\x00", RESULTS])
def test_a_message_of_an_unknown_sender_is_ignored(stage: Stage, sender: bytes) -> None:
    assert stage.hear_frames(sender, *worker_message_to_frames(Ready(model_facts()))) == []
    assert stage.pid == 1


def test_an_outage_begins_with_the_loss_of_the_last_ready_worker() -> None:
    stage = Stage()
    stage.clock.now = 500.0
    assert stage.workers.outage_s == 0.0  # at the first start, requests wait
    stage.hear(1, Ready(model_facts()))
    stage.clock.now = 600.0
    assert stage.workers.outage_s == 0.0
    stage.workers.lost(NAME, 1)
    stage.clock.now = 650.0
    assert stage.workers.outage_s == 50.0
    stage.hear(2, Ready(model_facts()))
    assert stage.workers.outage_s == 0.0


def test_a_worker_that_computes_nothing_for_a_minute_is_stale(stage: Stage) -> None:
    view = stage.workers.views[NAME]
    stage.hear(1, Heartbeat(10.0))
    assert (view.state(0.0), view.to_info(0.0)["state"]) == ("ready", "ready")
    stage.hear(1, Heartbeat(60.0))
    assert (view.state(0.0), view.to_info(0.0)["state"]) == ("stale", "stale")
    assert not stage.workers.have_recent_forwards()
