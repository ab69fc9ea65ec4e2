"""The broker with real sockets, without workers: what it believes of TCP clients and of gateways, and CANCEL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from bert_serving.protocol import (
    Command,
    CommandRequest,
    EncodeRequest,
    ServingError,
    TraceContext,
    Usage,
    request_to_frames,
)
from bert_serving.protocol.workers import Result
from bert_serving.server.broker import intake
from bert_serving.server.broker.batching import InFlightBatch
from bert_serving.server.broker.broker import Broker
from bert_serving.server.broker.job import Job
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.ports import PrivateEndpoints
from bert_serving.server.settings import Settings

from tests.support.running_server import free_ports
from tests.support.waiting import wait_until

ALICE = b"alice-0123456789"


class Arrivals:
    """Collects the requests that the broker accepts."""

    def __init__(self) -> None:
        self.requests: list[EncodeRequest | None] = []

    def request_arrived(self, request: EncodeRequest | None) -> None:
        self.requests.append(request)

    def request_done(self, request: EncodeRequest, usage: Usage) -> None:
        pass

    def request_failed(self, error: ServingError) -> None:
        pass


class Stages:
    """A JobTracer that collects what it is told. The trace of a job is its request id."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def begin(self, request: EncodeRequest, now: float, *, is_from_gateway: bool) -> object:
        self.calls.append(("begin", request.request_id, is_from_gateway))
        return request.request_id

    def batch_done(self, worker: str, batch_id: int, batch: InFlightBatch, result: Result, now: float) -> None:
        raise AssertionError("there are no workers")

    def done(self, job: Job, now: float, replied_at: float) -> None:
        raise AssertionError("there are no workers")

    def failed(self, job: Job, error: ServingError, now: float) -> None:
        self.calls.append(("failed", job.trace_handle, error.code))

    def cancelled(self, job: Job, now: float) -> None:
        self.calls.append(("cancelled", job.trace_handle))

    def refused(self, request: EncodeRequest, error: ServingError, now: float, *, is_from_gateway: bool) -> None:
        self.calls.append(("refused", request.request_id, error.code, is_from_gateway))


class Door:
    """A broker, and one PUSH socket to each of its sockets for requests."""

    def __init__(self, folder: Path) -> None:
        port, port_out = free_ports(2)
        endpoints = PrivateEndpoints.in_folder(folder)
        self.arrivals, self.stages, self.metrics = Arrivals(), Stages(), BrokerMetrics()
        self.broker = Broker(
            Settings(port=port, port_out=port_out, http_port=None),
            endpoints=endpoints,
            worker_names=[],
            max_seq_len=512,
            metrics=self.metrics,
            observers=[self.arrivals],
            tracer=self.stages,
        )
        self._context = zmq.Context()
        self.tcp = self._connect(f"tcp://127.0.0.1:{port}")
        self.gateway = self._connect(endpoints.requests)

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.connect(endpoint)
        return socket

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.broker.close()

    def step_until_arrived(self, count: int) -> list[EncodeRequest | None]:
        """Let the broker work until this number of requests has arrived; return them."""

        def has_arrived() -> bool:
            self.broker.step(10)
            return len(self.arrivals.requests) == count

        wait_until(has_arrived)
        return self.arrivals.requests


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.close()


def request(request_id: bytes, **more: object) -> EncodeRequest:
    return EncodeRequest(ALICE, request_id, ["a"], **more)  # type: ignore[arg-type]


def test_only_a_gateway_chooses_the_flow_of_a_request(door: Door) -> None:
    sent = request(b"1", flow="key:alice", flow_share=1.0, trace="4bf92f35")
    door.gateway.send_multipart(request_to_frames(sent))
    assert door.step_until_arrived(1) == [sent]
    door.tcp.send_multipart(request_to_frames(replace(sent, request_id=b"2")))
    assert door.step_until_arrived(2)[1] == request(b"2", trace="4bf92f35")


def test_a_request_that_is_sent_again_is_computed_once(door: Door) -> None:
    others = [replace(request(b"1"), texts=["other texts, so another request"]), request(b"2")]
    for sent in [request(b"1")] * 3 + others:
        door.tcp.send_multipart(request_to_frames(sent))
    assert door.step_until_arrived(3) == [request(b"1"), *others]
    assert "jobs=3" in repr(door.broker)


def test_after_many_refused_requests_the_next_ones_are_read_a_little_later(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_PAUSE_S", 1.0)  # a slow machine could miss a shorter pause
    for _ in range(40):
        door.tcp.send_multipart([b"not a request"])
    wait_until(lambda: door.broker.step(10) or door.broker._ports._paused_until is not None)
    door.tcp.send_multipart(request_to_frames(request(b"1")))
    door.broker.step(0)
    assert door.arrivals.requests[-1:] != [request(b"1")]
    wait_until(lambda: door.broker.step(10) or door.arrivals.requests[-1:] == [request(b"1")])


def test_cancel_ends_one_request_and_leaves_the_others(door: Door) -> None:
    for number in (b"1", b"2"):
        door.tcp.send_multipart(request_to_frames(request(number)))
    door.step_until_arrived(2)
    for number in (b"2", b"2", b"3"):  # also repeated, and for a request that does not exist
        door.tcp.send_multipart(request_to_frames(CommandRequest(ALICE, number, Command.CANCEL)))
    door.tcp.send_multipart(request_to_frames(request(b"4")))
    door.step_until_arrived(3)
    assert door.metrics.cancelled.value == 1
    assert "jobs=2" in repr(door.broker)
    assert door.metrics.commands.value == 0


def test_each_turn_of_the_loop_is_measured_without_its_waiting(door: Door) -> None:
    for _ in range(3):
        door.broker.wait(0)
    assert sum(door.metrics.turn.counts) == 2


def test_each_request_that_begins_a_trace_also_ends_it(door: Door) -> None:
    door.tcp.send_multipart(request_to_frames(request(b"1")))
    door.step_until_arrived(1)
    door.gateway.send_multipart(request_to_frames(request(b"2")))
    door.step_until_arrived(2)
    door.tcp.send_multipart(request_to_frames(CommandRequest(ALICE, b"1", Command.CANCEL)))
    wait_until(lambda: door.broker.step(10) or len(door.stages.calls) == 3)
    door.broker.fail_all("the server is shutting down")
    door.broker.stop_accepting()
    door.tcp.send_multipart(request_to_frames(request(b"3")))
    wait_until(lambda: door.broker.step(10) or len(door.stages.calls) == 5)
    assert door.stages.calls == [
        ("begin", b"1", False),
        ("begin", b"2", True),
        ("cancelled", b"1"),
        ("failed", b"2", "unavailable"),
        ("refused", b"3", "unavailable", False),
    ]


def test_a_request_without_a_name_is_named_after_its_trace_in_logs(door: Door) -> None:
    context = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    for sent in (request(b"1", trace_context=context), request(b"2", trace_context=context, trace="mine")):
        door.tcp.send_multipart(request_to_frames(sent))
    names = [arrived.trace for arrived in door.step_until_arrived(2)]
    assert names == ["-/4bf92f3577b34da6a3ce929d0e0e4736", "mine"]
