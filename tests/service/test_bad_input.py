"""Unknown and broken clients at the ZeroMQ ports get a reply and do not harm other clients."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator

import pytest
import zmq
from bert_serving.client import BertClient

from tests.support.running_server import RunningServer
from tests.support.sentences import numbered
from tests.support.waiting import HANG_S, wait_until

Frames = list[bytes]


class RawClient:
    """A client that sends any frames on plain sockets and returns the frames that it receives."""

    def __init__(self, server: RunningServer, *, rcvhwm: int = 1000) -> None:
        self.identity = str(uuid.uuid4()).encode()
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._push.connect(f"tcp://127.0.0.1:{server.port}")
        self._sub = self._context.socket(zmq.SUB)
        self._sub.rcvhwm = rcvhwm
        self._sub.subscribe(self.identity)
        self._sub.connect(f"tcp://127.0.0.1:{server.port_out}")

    def ask(self, *frames: bytes) -> Frames:
        self._push.send_multipart([self.identity, *frames])
        return self.receive()

    def send(self, *frames: bytes) -> None:
        self._push.send_multipart(list(frames))

    def receive(self) -> Frames:
        assert self._sub.poll(HANG_S * 1000), "no reply"
        return self._sub.recv_multipart()

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def raw(server: RunningServer) -> Iterator[RawClient]:
    client = RawClient(server)
    client.ask(b"SHOW_CONFIG", b"1", b"0")
    yield client
    client.close()


@pytest.mark.parametrize(
    ("body", "num_texts", "said"),
    [
        (b"not json", b"1", "the body is not JSON"),
        (b"not json", b"1000", "the body is not JSON"),  # 1000 texts are more than a batch may hold
        (b'["a", "b"]', b"1", "announces 1 texts but holds 2"),
        (b'["a"]', b"3", "announces 3 texts but holds 1"),
        (b'["a"]', b"many", "number of texts must be 1 to 20 decimal digits"),
        (b"[]", b"0", "texts must not be empty"),
        (b"[1, 2]", b"2", "texts[0] must be a string, got int"),
        (b'["a", ["b", 1]]', b"2", "texts[1][1] must be a string, got int"),
        (b'[["a"], []]', b"2", "texts[1] has no token"),
        (b'["\\ud800"]', b"1", "texts[0] contains a lone surrogate"),
        (b'["a\\u0000b"]', b"1", "texts[0] contains a NUL character"),
        (b"null", b"1", "texts must be a list of strings, got null"),
        *((body, b"0", "the body is not JSON") for body in (b"REGISTER", b"TOKENS", b"EMBEDDINGS")),
        (
            b'{"texts": ["a"], "options": {"prompt_name": "\\ud800"}}',
            b"1",
            "prompt_name contains a lone surrogate",
        ),
        (b'{"texts": ["a"], "spans": [[[3, 1]]]}', b"1", "spans[0] must hold"),
        (b'{"texts": ["a"], "options": {"no_such": 1}}', b"1", "unknown option 'no_such'"),
        (b'{"texts": ["a"], "deadline_ms": "soon"}', b"1", "deadline_ms must be a whole number"),
        (b"[" * 100_000, b"1", "the body is not JSON"),
    ],
)
def test_bad_requests_are_answered_with_a_reason(raw: RawClient, body: bytes, num_texts: bytes, said: str) -> None:
    topic, info, empty, request_id = raw.ask(body, b"7", num_texts)
    assert topic.startswith(raw.identity)
    assert (empty, request_id) == (b"", b"7")
    reply = json.loads(info)
    assert reply["error"]["code"] == "invalid_request"
    assert said in reply["error"]["message"]
    assert "," not in reply["dtype"]
    info = json.loads(raw.ask(b'["the next one"]', b"8", b"1")[1])
    assert info["shape"] == [1, 384]


def test_a_wrong_number_of_frames_is_answered_if_there_is_a_sender(raw: RawClient) -> None:
    for frames in ([b'["a"]'], [b'["a"]', b"7"], [b'["a"]', b"7", b"1", b"extra"]):
        info = json.loads(raw.ask(*frames)[1])
        assert info["error"]["message"].endswith(f"number of texts), got {len(frames) + 1}")


def test_garbage_without_a_sender_is_logged_and_harms_no_client(server: RunningServer, client: BertClient) -> None:
    unknown = RawClient(server)
    for frames in ([b""], [b"x"], [b"", b"[]", b"1", b"1"], [b"a" * 300, b"[]", b"1", b"1"], [b"\xff" * 20] * 9):
        unknown.send(*frames)
    with socket.create_connection(("127.0.0.1", server.port)) as probe:
        probe.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", server.port_out)) as other:
            other.sendall(b"\x16\x03\x01" + bytes(300))
            assert client.encode(["still here"]).shape == (1, 384)
    server.wait_for("ignored a message that is not a request")
    assert "Traceback" not in server.log
    unknown.close()


@pytest.mark.parametrize("topic", [b"", b"a", b"cli"])
def test_a_short_subscription_receives_no_reply_to_other_clients(server: RunningServer, topic: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as ear:
        ear.subscribe(topic)
        ear.connect(f"tcp://127.0.0.1:{server.port_out}")
        time.sleep(0.3)
        for identity in ("client", "abc", "abcdefghijklmnopqrstuvwxyz"[::-1]):
            with BertClient(**server.ports, identity=identity) as client:
                client.encode(["secret"])
        assert not ear.poll(300)


@pytest.mark.parametrize("identity", [b"\xff\xfe not ascii", b"with@at", b"with#hash", b"\0", b"x" * 255])
def test_an_identity_may_have_any_bytes(server: RunningServer, identity: bytes) -> None:
    with BertClient(**server.ports, identity=identity) as client:
        assert client.encode(["x"]).shape == (1, 384)


def test_a_bad_request_id_or_number_of_texts_in_a_command_does_no_harm(raw: RawClient) -> None:
    assert len(raw.ask(b"SHOW_STATUS", b"12345678901234567890", b"999999999")) == 3
    assert b"request id must be 1 to 20 decimal digits" in raw.ask(b"SHOW_CONFIG", b"abc", b"0")[1]


def test_a_flood_from_a_client_that_leaves_does_not_harm_the_server() -> None:
    """With heartbeats of libzmq enabled, this flood would abort the server's process."""
    with RunningServer("-memory_mb", "64") as running, BertClient(**running.wait_ready().ports) as client:
        flood = zmq.Context()
        push = flood.socket(zmq.PUSH)
        push.sndhwm = 0
        push.connect(f"tcp://127.0.0.1:{running.port}")
        for i in range(50_000):
            push.send_multipart([b"%016d" % i, b"x", b"1", b"1"])
        time.sleep(0.3)
        flood.destroy(linger=0)
        assert client.encode(["still here"]).shape == (1, 384)
        assert running.process.poll() is None
        assert running.log.count("dropped a reply") < 10


def test_a_connection_with_thousands_of_subscriptions_keeps_no_client_out(server: RunningServer) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as hoarder:
        hoarder.sndhwm = 0
        for i in range(60_000):
            hoarder.subscribe(b"%036d" % i)
        hoarder.connect(f"tcp://127.0.0.1:{server.port_out}")
        server.wait_for("ignored a subscription")
        time.sleep(1)
        with BertClient(**server.ports, timeout=HANG_S * 1000) as late:
            assert late.encode(["still here"]).shape == (1, 384)
            assert 256 < late.server_status["connected_clients"] < 300
    assert server.log.count("ignored a subscription") == 1
    with BertClient(**server.ports) as client:
        wait_until(lambda: client.server_status["connected_clients"] <= 100)


def test_requests_of_invented_identities_do_not_go_before_those_of_clients() -> None:
    with RunningServer() as running, BertClient(**running.wait_ready().ports) as client:
        flood = RawClient(running)
        with running.paused_workers():
            for i in range(20_000):
                flood.send(b"%036d" % i, b'["a sentence to wait for, number %d"]' % i, b"1", b"1")
            wait_until(lambda: client.server_status["queue_texts"] >= 10_000)
        for _ in range(3):
            client.encode(["a client"])
        with BertClient(**running.ports) as late:
            late.encode(["another one"])
        assert client.server_status["queue_texts"] > 5_000
        flood.close()


def test_queued_work_of_a_client_that_goes_away_is_removed(server: RunningServer, client: BertClient) -> None:
    leaver = RawClient(server)
    leaver.ask(b"SHOW_CONFIG", b"1", b"0")
    leaver.send(leaver.identity, json.dumps(numbered("a sentence to forget", 30_000)).encode(), b"2", b"30000")
    wait_until(lambda: client.server_status["queue_texts"] >= 1000)
    leaver.close()
    wait_until(lambda: client.server_status["queue_texts"] == 0)
    assert client.server_status["open_requests"] == 0


def test_the_oldest_clients_termination_is_obeyed() -> None:
    """Clients older than 1.9.1 send the command TERMINATION, and leave all other frames empty."""
    with RunningServer("-cpu") as server:
        server.wait_ready()
        with zmq.Context() as context, context.socket(zmq.PUSH) as pusher:
            pusher.connect(f"tcp://127.0.0.1:{server.port}")
            pusher.send_multipart([b"", b"TERMINATION", b"", b""])
            assert server.wait_end() == 0
