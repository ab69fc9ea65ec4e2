"""What a careless or hostile client cannot do to the server and to its other clients.

All tests share one server with small limits. In each of them, another client must get its vectors while the first
one misbehaves.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from bert_serving.client import BertClient

from tests.hostile.raw import shaken_hands
from tests.support.running_server import RunningServer
from tests.support.sentences import numbered
from tests.support.waiting import HANG_S, wait_until

OUTBOX_AGE_S = 4
MEMORY_MB = 64


class Stranger:
    """A client that sends any frames on plain sockets. With rcvhwm 1 and a small buffer, it soon reads nothing."""

    def __init__(self, server: RunningServer, *, subscribes: bool = True, identity: bytes | None = None) -> None:
        self.identity = identity or str(uuid.uuid4()).encode()
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._push.sndhwm = 0
        self._push.connect(f"tcp://127.0.0.1:{server.port}")
        self._endpoint = f"tcp://127.0.0.1:{server.port_out}"
        if subscribes:
            self.subscribe()

    def subscribe(self) -> None:
        self._sub = self._context.socket(zmq.SUB)
        self._sub.rcvhwm = 1
        self._sub.rcvbuf = 4096
        self._sub.subscribe(self.identity)
        self._sub.connect(self._endpoint)

    def lose_replies(self) -> None:
        """Close the connection for replies, as if it was cut."""
        self._sub.close(linger=0)

    def ask(self, body: bytes, request_id: int, num_texts: int = 1, identity: bytes | None = None) -> None:
        self._push.send_multipart([identity or self.identity, body, b"%d" % request_id, b"%d" % num_texts])

    def reply(self) -> tuple[int, dict[str, Any]]:
        """Return the next reply: its request id and its info."""
        assert self._sub.poll(HANG_S * 1000), "no reply"
        frames = self._sub.recv_multipart()
        return int(frames[-1]), json.loads(frames[1])

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def bounded(tiny: Path) -> Iterator[RunningServer]:
    limits = ("-outbox_age", OUTBOX_AGE_S, "-memory_mb", MEMORY_MB, "-queue_capacity", 20_000)
    with RunningServer("-cpu", "-model_dir", tiny, *limits) as running:
        yield running.wait_ready()


@pytest.fixture
def other(bounded: RunningServer) -> Iterator[BertClient]:
    """Another client. Before the test it is connected; after the test it must still get its vectors."""
    with BertClient(**bounded.ports, timeout=HANG_S * 1000) as client:
        yield client
        assert len(client.encode(["still here"])) == 1


@pytest.fixture
def stranger(bounded: RunningServer) -> Iterator[Stranger]:
    client = Stranger(bounded)
    client.ask(b"SHOW_CONFIG", 1, 0)
    client.reply()
    yield client
    client.close()


def memory_mb(server: RunningServer) -> float:
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


def metric(client: BertClient, server: RunningServer, name: str) -> float:
    from urllib.request import urlopen

    with urlopen(f"{server.url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"bert_serving_{name} "))


def test_a_client_that_does_not_read_its_errors_stops_nobody(
    bounded: RunningServer, other: BertClient, stranger: Stranger
) -> None:
    before = memory_mb(bounded)
    for i in range(70_000):
        stranger.ask(b"[]", i + 2, 0)
    ends_at = time.monotonic() + 3 * OUTBOX_AGE_S
    while time.monotonic() < ends_at:  # while the errors wait, and while they expire
        assert len(other.encode(["another client"])) == 1
    assert memory_mb(bounded) - before < 60
    assert "does not answer" not in bounded.log


def test_errors_to_invented_identities_take_little_memory(bounded: RunningServer, other: BertClient) -> None:
    flood = Stranger(bounded, subscribes=False)
    before = memory_mb(bounded)
    num_before = other.server_status["statistic"]["num_data_request"]
    for _ in range(60_000):
        flood.ask(b"no JSON", 1, 1, identity=uuid.uuid4().bytes)
    flood.ask(b'["the last one"]', 2)
    wait_until(lambda: other.server_status["statistic"]["num_data_request"] > num_before)
    assert memory_mb(bounded) - before < 40
    flood.close()


@pytest.mark.parametrize("kind", [b"PUSH", b"SUB"])
def test_a_message_without_an_end_is_ended(bounded: RunningServer, other: BertClient, kind: bytes) -> None:
    before = memory_mb(bounded)
    port = bounded.port if kind == b"PUSH" else bounded.port_out
    empty_frames = b"\1\0" * 30_000  # libzmq takes 64 bytes for each of them
    with shaken_hands(port, kind) as attacker, suppress(ConnectionError):
        while True:  # until the connection ends
            attacker.sendall(empty_frames)
    assert "disconnected all clients: libzmq holds too much memory" in bounded.log
    assert len(other.encode(["another client"])) == 1
    wait_until(lambda: memory_mb(bounded) - before < 300)


def test_a_body_that_explodes_is_refused_before_it_is_parsed(
    bounded: RunningServer, other: BertClient, stranger: Stranger
) -> None:
    before = memory_mb(bounded)
    body = b'{"texts":["a"],"x":[' + b"[]," * 8_000_000 + b"[]]}"
    stranger.ask(body, 2, num_texts=100)  # with one text, the body would be refused because of its length
    request_id, info = stranger.reply()
    assert (request_id, info["error"]["code"]) == (2, "payload_too_large")
    assert memory_mb(bounded) - before < 100  # parsed, it would take 600 MB


def test_a_request_whose_vectors_cannot_fit_is_refused_at_once(bounded: RunningServer, stranger: Stranger) -> None:
    wide = {"pooling_strategy": ["REDUCE_MEAN", "REDUCE_MAX", "CLS_TOKEN"], "pooling_layer": [-1, -2]}
    stranger.ask(json.dumps({"texts": ["a"] * 9_000, "options": {**wide, "long_text": "chunk"}}).encode(), 2, 9000)
    token_vectors = {"texts": ["many words " * 200] * 9_000, "options": {"pooling_strategy": "NONE"}}
    stranger.ask(json.dumps(token_vectors).encode(), 3, 9_000)
    codes = dict(stranger.reply() for _ in range(2))
    assert codes[3]["error"]["code"] == "payload_too_large"


def test_replies_that_are_not_read_hold_no_more_than_their_share(
    bounded: RunningServer, other: BertClient, stranger: Stranger
) -> None:
    body = json.dumps(
        {"texts": numbered("word", 500), "options": {"pooling_strategy": "NONE", "ragged": True}}
    ).encode()
    for i in range(200):
        stranger.ask(body, i + 2, 500)
    wait_until(lambda: other.server_status["open_requests"] == 0)
    held = metric(other, bounded, "held_bytes")
    assert held < MEMORY_MB / 2 * 2**20
    assert len(other.encode(numbered("another client", 500))) == 500
    wait_until(lambda: metric(other, bounded, "dropped_replies_total") > 0)
    seen = dict(stranger.reply() for _ in range(200))  # each request has exactly one reply: vectors or an error
    assert sorted(seen) == list(range(2, 202))


def test_one_request_cannot_lock_others_out(bounded: RunningServer, other: BertClient, stranger: Stranger) -> None:
    with bounded.paused_workers():
        for i in range(5):
            stranger.ask(json.dumps(numbered(f"request {i}", 9_000)).encode(), i + 2, 9_000)
        _, info = stranger.reply()
        assert info["error"]["code"] == "overloaded"
        other.encode(["another client"] * 20, blocking=False)
    (rows,) = other.fetch_all()
    assert len(rows) == 20


def test_a_lost_connection_for_replies_ends_in_an_error(
    bounded: RunningServer, other: BertClient, stranger: Stranger
) -> None:
    with bounded.paused_workers():
        stranger.ask(json.dumps(numbered("a sentence to wait for", 9_000)).encode(), 7, 9_000)
        wait_until(lambda: other.server_status["open_requests"] == 1)
        stranger.lose_replies()
        wait_until(lambda: other.server_status["open_requests"] == 0)
    stranger.subscribe()
    request_id, info = stranger.reply()
    assert (request_id, info["error"]["code"]) == (7, "unavailable")
    assert "send the request again" in info["error"]["message"]
    assert info["error"]["retry_after_ms"] >= 1


def test_a_subscriber_that_does_not_read_does_not_stop_others_with_its_identity(
    bounded: RunningServer, other: BertClient
) -> None:
    shared = str(uuid.uuid4()).encode()
    deaf = Stranger(bounded, identity=shared)
    with BertClient(**bounded.ports, identity=shared.decode(), timeout=HANG_S * 1000) as victim:
        for _ in range(60):  # 12 MB of token vectors do not fit into the system's buffers
            assert len(victim.encode(["many words " * 40] * 20, pooling_strategy="NONE")) == 20
    deaf.close()


def test_many_small_requests_in_flight_are_all_answered(bounded: RunningServer, stranger: Stranger) -> None:
    ids = list(range(2, 302))
    for i in ids:
        stranger.ask(b'["a small request"]', i)
    assert sorted(stranger.reply()[0] for _ in ids) == ids
