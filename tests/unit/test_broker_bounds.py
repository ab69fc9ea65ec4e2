"""The broker with real sockets, careless clients and an invented worker: what they cannot make it hold."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from bert_serving.protocol import MAX_TEXT_CHARS, EncodeRequest, request_to_frames
from bert_serving.protocol.workers import (
    Batch,
    Ready,
    Result,
    Vectors,
    worker_message_from_frames,
    worker_message_to_frames,
)
from bert_serving.server.broker import inspection, outbox
from bert_serving.server.broker.broker import Broker
from bert_serving.server.broker.budget import Budget
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.ports import PrivateEndpoints
from bert_serving.server.broker.text_format import Registry, Snapshot
from bert_serving.server.settings import Settings

from tests.support.model_facts import model_facts
from tests.support.running_server import free_ports
from tests.support.waiting import HANG_S, wait_until

NAME, PID = "worker-0", 1
WIDTH = 4096  # components of a vector: one of them is sent without a copy
ALICE, BOB = (str(uuid.UUID(int=i)).encode() for i in (1, 2))


class Neighbourhood:
    """A broker, a worker, and clients that send and receive frames as they like."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        port, port_out = free_ports(2)
        endpoints = PrivateEndpoints.in_folder(folder)
        self.metrics = BrokerMetrics([NAME])
        self.broker = Broker(
            Settings(**{"port": port, "port_out": port_out, "http_port": None, "memory_mb": 64, **settings}),
            endpoints=endpoints,
            worker_names=[NAME],
            max_seq_len=512,
            metrics=self.metrics,
        )
        self._replies = f"tcp://127.0.0.1:{port_out}"
        self._context = zmq.Context()
        self.push = self._context.socket(zmq.PUSH)
        self.push.sndhwm = 0
        self.push.connect(f"tcp://127.0.0.1:{port}")
        self._worker = self._context.socket(zmq.DEALER)
        self._worker.routing_id = f"{NAME}#{PID}".encode()
        self._worker.connect(endpoints.workers)
        facts = model_facts(pid=PID, dimension=WIDTH, hidden_size=WIDTH)
        self._worker.send_multipart(worker_message_to_frames(Ready(facts)))
        self.step_until(lambda: self.broker.ready_pid(NAME) == PID)

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.broker.close()

    @property
    def held(self) -> int:
        return self.broker._scheduler.admission.memory.held

    @property
    def num_jobs(self) -> int:
        return self.broker._scheduler.num_jobs

    def subscriber(self, identity: bytes, *, reads: bool = True) -> zmq.Socket[bytes]:
        """Return a socket that has subscribed. If it does not read, its buffers are small."""
        num_before = self.broker._replies._subscriptions._total_accepted
        sub = self._context.socket(zmq.SUB)
        if not reads:
            sub.rcvhwm = 1
            sub.rcvbuf = 4096
        sub.subscribe(identity)
        sub.connect(self._replies)
        self.step_until(lambda: self.broker._replies._subscriptions._total_accepted > num_before)
        return sub

    def ask(self, identity: bytes, request_id: int, num_texts: int = 1, **more: Any) -> None:
        request = EncodeRequest(identity, b"%d" % request_id, ["a"] * num_texts, **more)
        self.push.send_multipart(request_to_frames(request))

    def work(self) -> None:
        """Compute the batches that the worker has got."""
        while self._worker.poll(0):
            batch = worker_message_from_frames(self._worker.recv_multipart())
            assert isinstance(batch, Batch)
            parts = [Vectors(np.ones((len(p.texts), WIDTH), np.float32), [3] * len(p.texts)) for p in batch.parts]
            self._worker.send_multipart(worker_message_to_frames(Result(batch.batch_id, parts)))

    def step_until(self, condition: Callable[[], object]) -> None:
        def is_true() -> object:
            self.broker.step(1)
            self.work()
            return condition()

        wait_until(is_true)

    def step_all(self) -> None:
        """Let the broker read everything that was sent: the last message is a request of BOB."""
        num_before = self.metrics.requests.value
        self.ask(BOB, 999)
        self.step_until(lambda: self.metrics.requests.value > num_before and self.num_jobs == 0)

    def receive(self, sub: zmq.Socket[bytes]) -> tuple[int, dict[str, Any]]:
        """Return the next reply: its request id and its info."""
        self.step_until(lambda: sub.poll(0))
        frames = sub.recv_multipart()
        return int(frames[-1]), json.loads(frames[1])


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Neighbourhood]:
    around = Neighbourhood(tmp_path)
    yield around
    around.close()


def test_bytes_stay_reserved_while_libzmq_holds_a_reply(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE, reads=False)
    for i in range(40):
        around.ask(ALICE, i + 1, 16)
    around.step_until(lambda: around.num_jobs == 0 and len(around.broker._replies._pipes) > 1)
    num_in_pipes = len(around.broker._replies._pipes)
    assert around.held >= num_in_pipes * 16 * WIDTH * 4
    assert sorted(around.receive(sub)[0] for _ in range(40)) == list(range(1, 41))
    around.step_until(lambda: around.held == 0)


def test_nothing_stays_reserved_for_a_client_that_is_gone(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE, reads=False)
    for i in range(100):
        around.ask(ALICE, i + 1, 16)
    around.step_until(lambda: around.num_jobs == 0)
    assert around.held > 0
    sub.close(linger=0)
    around.step_until(lambda: around.held == 0)


def test_garbage_of_any_shape_leaves_nothing_reserved_and_little_held(around: Neighbourhood) -> None:
    chance = random.Random(0)
    bodies = (b"", b"[]", b"no JSON", b'["a"]', b'{"texts":["a"]', b"SHOW_CONFIG", b"CANCEL", b"\xff" * 50)
    for _ in range(5000):
        frames = [chance.randbytes(36), chance.choice(bodies), b"%d" % chance.randrange(3), b"1"]
        around.push.send_multipart(frames[: chance.randrange(1, 5)])
    around.step_all()
    around.broker._replies.expire(time.monotonic() + 1e6, Budget(HANG_S))
    assert around.held == 0
    assert around.broker._replies.held_bytes <= 2 << 20


def test_a_body_that_explodes_is_refused_unparsed(around: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    sub = around.subscriber(ALICE)
    body = b'{"texts":["a"],"x":[' + b"[]," * 1_000_000 + b"[]]}"
    monkeypatch.setattr("bert_serving.server.broker.intake.request_from_frames", pytest.fail)
    around.push.send_multipart([ALICE, body, b"7", b"1"])
    request_id, info = around.receive(sub)
    assert (request_id, info["error"]["code"]) == (7, "payload_too_large")
    assert around.broker._scheduler.admission.num_refused["too_large"] == 1


def blanks(num_bytes: int) -> bytes:
    """Return a body of this length with one text."""
    return b'["' + b" " * (num_bytes - 4) + b'"]'


def test_a_body_longer_than_its_texts_may_be_is_refused_unread(
    around: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = around.subscriber(ALICE)
    monkeypatch.setattr("bert_serving.server.broker.admission.parsed_size", pytest.fail)
    around.push.send_multipart([ALICE, blanks(2 * MAX_TEXT_CHARS + 1), b"7", b"1"])
    request_id, info = around.receive(sub)
    assert (request_id, info["error"]["code"]) == (7, "payload_too_large")
    assert info["error"]["message"].endswith("of 1 texts may have at most 8388608 bytes, got 8388609")


def test_a_text_longer_than_the_limit_is_refused(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE)
    for request_id, num_bytes in ((7, 2 * MAX_TEXT_CHARS), (8, MAX_TEXT_CHARS + 4)):
        around.push.send_multipart([ALICE, blanks(num_bytes), b"%d" % request_id, b"1"])
    request_id, info = around.receive(sub)
    assert (request_id, info["error"]["code"]) == (7, "payload_too_large")
    assert info["error"]["message"] == "texts[0] may have at most 4194304 characters, got 8388604"
    request_id, info = around.receive(sub)
    assert (request_id, info["shape"]) == (8, [1, WIDTH])


def test_a_request_of_up_to_twice_the_largest_size_gets_an_error(tmp_path: Path) -> None:
    with closing(Neighbourhood(tmp_path, max_message_mb=1)) as around:
        sub = around.subscriber(ALICE)
        for request_id, num_bytes in ((7, 1 << 20), (8, (1 << 20) + 1), (9, 2 << 20)):
            around.push.send_multipart([ALICE, blanks(num_bytes), b"%d" % request_id, b"1"])
        replies = dict(around.receive(sub) for _ in range(3))
    assert replies[7]["shape"] == [1, WIDTH]
    for request_id, got in ((8, 1048577), (9, 2097152)):
        assert replies[request_id]["error"]["code"] == "payload_too_large"
        assert replies[request_id]["error"]["message"].endswith(f"may have at most 1048576 bytes, got {got}")


@pytest.mark.parametrize(
    ("body", "num_texts", "said"),
    [
        (b"[" + b'"a",' * (5 << 20) + b'"a"]', 1 << 18, "at most 4194304 values"),
        (b'{"texts":["a"],"spans":[[' + b"[0,1]," * (2 << 20) + b"[0,1]]]}", 4, "at most 4194304 values"),
        (b"[" + b"[1]," * 300_000 + b"[1]]", 300_001, "at most 262144 texts, got 300001"),
    ],
)
def test_a_body_that_takes_seconds_to_parse_is_refused_unparsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, num_texts: int, said: str
) -> None:
    with closing(Neighbourhood(tmp_path, memory_mb=8192)) as around:
        sub = around.subscriber(ALICE)
        monkeypatch.setattr("bert_serving.server.broker.intake.request_from_frames", pytest.fail)
        around.push.send_multipart([ALICE, body, b"7", b"%d" % num_texts])
        request_id, info = around.receive(sub)
    assert (request_id, info["error"]["code"]) == (7, "payload_too_large")
    assert said in info["error"]["message"]


def test_commands_are_answered_though_the_client_has_used_up_its_share(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE)
    around.broker._scheduler.worker_lost(NAME)  # so that the requests wait
    for i in range(3):
        around.ask(ALICE, i + 1, 700)
    while around.receive(sub)[1]["error"]["code"] != "overloaded":
        pass
    around.push.send_multipart([ALICE, b"SHOW_CONFIG", b"50", b"0"])
    request_id, info = around.receive(sub)
    assert (request_id, "error" in info) == (50, False)
    num_before = around.num_jobs
    around.push.send_multipart([ALICE, b"CANCEL", b"1", b"0"])
    around.step_until(lambda: around.num_jobs == num_before - 1)


def test_a_request_is_refused_before_its_vectors_are_computed(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE)
    around.ask(ALICE, 7, 3000)  # 48 MB of vectors; one client may hold 30 MB
    assert around.receive(sub)[1]["error"]["code"] == "payload_too_large"
    for i in range(3):
        around.push.send_multipart(request_to_frames(EncodeRequest(ALICE, b"%d" % i, ["a"] * 1200)))
    codes = [around.receive(sub)[1].get("error", {}).get("code") for _ in range(3)]
    assert "overloaded" in codes


def test_a_deaf_subscriber_does_not_stop_the_replies_to_others_with_its_identity(
    around: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_BLOCKED_S", 0.05)
    deaf = around.subscriber(ALICE, reads=False)
    sub = around.subscriber(ALICE)
    for i in range(100):
        around.ask(ALICE, i + 1, 16)
        assert around.receive(sub)[0] == i + 1
    assert deaf.poll(0)  # it had its chance


def test_a_client_whose_connection_for_replies_is_lost_finds_an_error(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE)
    around.broker._scheduler.worker_lost(NAME)  # so that the request waits
    around.ask(ALICE, 7)
    around.step_until(lambda: around.num_jobs == 1)
    sub.close(linger=0)
    around.step_until(lambda: around.num_jobs == 0)
    request_id, info = around.receive(around.subscriber(ALICE))
    assert (request_id, info["error"]["code"]) == (7, "unavailable")
    assert around.held == 0


def test_the_broker_wakes_up_for_a_deadline(around: Neighbourhood) -> None:
    sub = around.subscriber(ALICE)
    around.broker._scheduler.worker_lost(NAME)
    around.ask(ALICE, 7, deadline_ms=200)
    around.step_until(lambda: around.num_jobs == 1)
    begin = time.monotonic()
    around.broker.step(HANG_S * 1000)
    assert time.monotonic() - begin < HANG_S / 2
    assert around.receive(sub)[1]["error"]["code"] == "deadline_exceeded"


def test_metrics_are_collected_only_so_often(around: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    sub = around.subscriber(ALICE)
    collected: list[Snapshot] = []

    def snapshot(_: Registry) -> Snapshot:
        collected.append(Snapshot("%s", [len(collected) + 1]))
        return collected[-1]

    monkeypatch.setattr(Registry, "snapshot", snapshot)
    monkeypatch.setattr(inspection, "_FRESH_PER_S", 0.0)
    for i in range(200):
        around.push.send_multipart([ALICE, b"SHOW_METRICS", b"%d" % i, b"0"])
    numbers = [around.receive(sub)[1]["numbers"] for _ in range(200)]
    assert {number for (number,) in numbers} == set(range(1, len(collected) + 1))
    assert len(collected) == 20


def test_the_flows_of_gateways_share_nothing_with_the_identities_of_clients(around: Neighbourhood) -> None:
    around.broker._scheduler.worker_lost(NAME)
    around.ask(b"key:alice", 1)
    around.step_until(lambda: around.num_jobs == 1)
    assert around.broker._scheduler.admission.memory.held_by(b"gateway:key:alice") == 0
