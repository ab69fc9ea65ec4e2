"""The broker with real sockets and an invented worker, which may send anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from bert_serving.protocol import EncodeRequest, ServingError, Unavailable, Usage, WorkerFailed, request_to_frames
from bert_serving.protocol.workers import (
    Batch,
    Heartbeat,
    Ready,
    Result,
    Vectors,
    WorkerMessage,
    worker_message_from_frames,
    worker_message_to_frames,
)
from bert_serving.server.broker.broker import Broker
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.ports import PrivateEndpoints
from bert_serving.server.settings import Settings

from tests.support.model_facts import model_facts
from tests.support.running_server import free_ports
from tests.support.waiting import wait_until

NAME, PID = "worker-0", 1
ALICE = b"alice-0123456789"


class Observer:
    """Collects how requests end: with their usage, or with an error."""

    def __init__(self) -> None:
        self.ends: list[Usage | ServingError] = []

    def request_arrived(self, request: EncodeRequest | None) -> None: ...

    def request_done(self, request: EncodeRequest, usage: Usage) -> None:
        self.ends.append(usage)

    def request_failed(self, error: ServingError) -> None:
        self.ends.append(error)


class Stage:
    """A broker, a socket of a client, and a socket of a worker."""

    def __init__(self, folder: Path) -> None:
        port, port_out = free_ports(2)
        endpoints = PrivateEndpoints.in_folder(folder)
        self.observer = Observer()
        self.metrics = BrokerMetrics([NAME])
        self.broker = Broker(
            Settings(port=port, port_out=port_out, http_port=None, unavailable_after=30),
            endpoints=endpoints,
            worker_names=[NAME],
            max_seq_len=512,
            metrics=self.metrics,
            observers=[self.observer],
        )
        self._context = zmq.Context()
        self._client = self._context.socket(zmq.PUSH)
        self._client.connect(f"tcp://127.0.0.1:{port}")
        self._worker = self._context.socket(zmq.DEALER)
        self._worker.routing_id = f"{NAME}#{PID}".encode()
        self._worker.connect(endpoints.workers)

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.broker.close()

    def tell(self, message: WorkerMessage) -> None:
        self._worker.send_multipart(worker_message_to_frames(message))

    def tell_frames(self, *frames: bytes) -> None:
        self._worker.send_multipart(frames)

    def be_ready(self) -> None:
        self.tell(Ready(model_facts(pid=PID)))
        self.step_until(lambda: self.broker.ready_pid(NAME) == PID)

    def ask(self) -> None:
        self._client.send_multipart(request_to_frames(EncodeRequest(ALICE, b"1", ["a"])))

    def batch(self) -> Batch:
        """Return the next batch that the worker gets."""
        self.step_until(lambda: self._worker.poll(0))
        message = worker_message_from_frames(self._worker.recv_multipart())
        assert isinstance(message, Batch)
        return message

    def end(self) -> Usage | ServingError:
        """Return how the next request ends."""
        self.step_until(lambda: self.observer.ends)
        return self.observer.ends.pop(0)

    def step_until(self, condition: object) -> None:
        def is_true() -> object:
            self.broker.step(10)
            return condition()  # type: ignore[operator]

        wait_until(is_true)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def good_result(batch: Batch) -> Result:
    return Result(batch.batch_id, [Vectors(np.zeros((1, 2), np.float32), [3])])


@pytest.mark.parametrize(
    "frames",
    [
        (b"RESULT", b"{"),
        (b"RESULT", b'{"batch_id": 1, "part_results": []}'),
        (b"RESULT", b'{"batch_id": 1, "part_results": [{"array": {"shape": [9, 9], "dtype": "<f4"}}]}', b"x"),
        (b"READY", b'{"facts": {}}'),
        (b"what?",),
    ],
)
def test_a_message_that_makes_no_sense_fails_one_batch_and_not_the_server(
    stage: Stage, frames: tuple[bytes, ...]
) -> None:
    stage.be_ready()
    stage.ask()
    assert stage.batch().batch_id == 1
    stage.tell_frames(*frames)
    assert isinstance(stage.end(), WorkerFailed)
    stage.ask()
    stage.tell(good_result(stage.batch()))
    assert isinstance(stage.end(), Usage)


def test_an_unexpected_error_fails_one_batch_and_not_the_server(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> tuple[int, int]:
        raise ZeroDivisionError

    stage.be_ready()
    stage.ask()
    batch = stage.batch()
    with monkeypatch.context() as patch:
        patch.setattr(BrokerMetrics, "count_batch", broken)
        stage.tell(good_result(batch))
        assert isinstance(stage.end(), WorkerFailed)
    stage.ask()
    stage.tell(good_result(stage.batch()))
    assert isinstance(stage.end(), Usage)


def test_requests_wait_for_the_first_worker_without_a_limit(stage: Stage) -> None:
    stage.ask()
    stage.step_until(lambda: "jobs=1" in repr(stage.broker))
    stage.broker.clock.now = 10_000.0
    stage.broker.step(0)
    stage.be_ready()
    stage.tell(good_result(stage.batch()))
    assert isinstance(stage.end(), Usage)


def test_after_unavailable_after_without_a_worker_requests_get_unavailable_with_a_retry_time(stage: Stage) -> None:
    stage.be_ready()
    stage.broker.worker_ended(NAME, PID)
    stage.ask()
    stage.step_until(lambda: "jobs=1" in repr(stage.broker))
    stage.broker.clock.now += 29
    stage.broker.step(0)
    assert stage.observer.ends == []  # it waits
    stage.broker.clock.now += 1.5
    waiting = stage.end()
    stage.ask()
    for error in (waiting, stage.end()):
        assert isinstance(error, Unavailable)
        assert error.retry_after_ms == 10_000
        assert "no worker has been ready for" in error.message
    stage.be_ready()
    stage.ask()
    stage.tell(good_result(stage.batch()))
    assert isinstance(stage.end(), Usage)


def test_nothing_is_sent_to_a_worker_while_its_last_messages_are_read(stage: Stage) -> None:
    stage.be_ready()
    stage.ask()
    stage.step_until(lambda: "in_flight=1" in repr(stage.broker))
    batch = stage.batch()
    stage.broker.wait(0)
    stage.ask()
    stage.tell(good_result(batch))
    wait_until(lambda: stage.broker.read_worker_messages() or stage.observer.ends)
    assert isinstance(stage.end(), Usage)
    stage.broker.worker_ended(NAME, PID)
    stage.step_until(lambda: "jobs=1" in repr(stage.broker))
    stage.be_ready()
    assert stage.batch().batch_id == 2


def test_the_memory_of_a_gpu_is_shown_as_long_as_its_worker_lives(stage: Stage) -> None:
    metric = "bert_serving_device_memory_bytes"
    stage.be_ready()
    stage.tell(Heartbeat(0.1))
    stage.tell(Heartbeat(0.1, 1, device_bytes=3 << 30))
    stage.step_until(lambda: f'\n{metric}{{worker="{NAME}"}} {3 << 30}\n' in stage.metrics.text())
    stage.broker.worker_lost(NAME, PID)
    assert metric not in stage.metrics.text()


def test_a_worker_on_a_cpu_has_no_memory_of_a_gpu(stage: Stage) -> None:
    stage.be_ready()
    stage.tell(Heartbeat(0.1, 7))
    stage.step_until(lambda: (view := stage.broker._workers.views[NAME]).heartbeat and view.heartbeat.num_forwards)
    assert "device_memory" not in stage.metrics.text()
