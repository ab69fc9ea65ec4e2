"""CURVE lets in the clients whose keys are in the folder, and only over TCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from bert_serving.client.address import CurveKeys
from bert_serving.server.broker.curve import CurveServer
from bert_serving.server.broker.ports import Ports, PrivateEndpoints
from bert_serving.server.cli.key_folder import KeyFolder

from tests.support.running_server import free_ports
from tests.support.waiting import HANG_S, wait_until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    KeyFolder(tmp_path / "keys").make(["alice"])
    return tmp_path / "keys"


@pytest.fixture
def stranger(tmp_path: Path, folder: Path) -> CurveKeys:
    """The keys of a client that knows the server's public key, but whose own key the server does not know."""
    KeyFolder(tmp_path / "other").make(["mallory"])
    (tmp_path / "other" / "mallory" / "server.key").write_bytes((folder / "server.key").read_bytes())
    return CurveKeys.load(tmp_path / "other" / "mallory")


class Protected:
    """The ports of a broker with CURVE, and clients of them."""

    def __init__(self, folder: Path, private: Path) -> None:
        self.curve = CurveServer(folder)
        self.port, self.port_out = free_ports(2)
        self.endpoints = PrivateEndpoints.in_folder(private)
        self.ports = Ports(
            host="127.0.0.1",
            port=self.port,
            port_out=self.port_out,
            endpoints=self.endpoints,
            max_message_bytes=1000,
            num_children=1,
            curve=self.curve,
        )
        self._context = zmq.Context()

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.ports.close()

    def lets_in(self, keys: CurveKeys | None, *, kind: int = zmq.PUSH) -> bool:
        """Return how the handshake of a new client ends."""
        port = self.port if kind == zmq.PUSH else self.port_out
        return self.lets_in_at(f"tcp://127.0.0.1:{port}", keys, kind)

    def lets_in_at(self, endpoint: str, keys: CurveKeys | None = None, kind: int = zmq.PUSH) -> bool:
        with self._context.socket(kind) as client:
            if keys is not None:
                keys.apply_to(client)
            events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
            monitor = client.get_monitor_socket(events | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
            client.connect(endpoint)
            assert monitor.poll(HANG_S * 1000)
            event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            client.disable_monitor()
            return event == zmq.EVENT_HANDSHAKE_SUCCEEDED


@pytest.fixture
def protected(folder: Path, tmp_path: Path) -> Iterator[Protected]:
    ports = Protected(folder, tmp_path)
    yield ports
    ports.close()


@pytest.mark.parametrize("kind", [zmq.PUSH, zmq.SUB])
def test_both_ports_let_in_only_clients_whose_key_is_known(
    protected: Protected, folder: Path, stranger: CurveKeys, kind: int
) -> None:
    assert protected.lets_in(CurveKeys.load(folder / "alice"), kind=kind)
    assert not protected.lets_in(stranger, kind=kind)
    assert not protected.lets_in(None, kind=kind)


def test_private_endpoints_need_no_key(protected: Protected) -> None:
    assert protected.lets_in_at(protected.endpoints.requests)
    assert protected.lets_in_at(protected.endpoints.replies, kind=zmq.SUB)


def test_a_message_of_a_known_client_arrives_and_a_strangers_does_not(
    protected: Protected, folder: Path, stranger: CurveKeys
) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as known, context.socket(zmq.PUSH) as unknown:
        for socket, keys in ((unknown, stranger), (known, CurveKeys.load(folder / "alice"))):
            keys.apply_to(socket)
            socket.linger = 0
            socket.connect(f"tcp://127.0.0.1:{protected.port}")
            socket.send(b"hello from " + keys.public)
        wait_until(lambda: protected.ports.requests.poll(100))
        assert protected.ports.requests.recv() == b"hello from " + CurveKeys.load(folder / "alice").public
        assert not protected.ports.requests.poll(100)


def test_a_removed_client_is_refused_and_a_new_one_let_in_after_a_reload(
    protected: Protected, folder: Path
) -> None:
    alice = CurveKeys.load(folder / "alice")
    (folder / "clients" / "alice.key").unlink()
    KeyFolder(folder).make(["bob"])
    bob = CurveKeys.load(folder / "bob")
    assert protected.lets_in(alice)
    assert not protected.lets_in(bob)
    protected.curve.reload()
    assert not protected.lets_in(alice)
    assert protected.lets_in(bob)


def test_a_refused_key_is_logged_so_that_the_operator_can_find_it(
    protected: Protected, folder: Path, stranger: CurveKeys, caplog: pytest.LogCaptureFixture
) -> None:
    assert protected.lets_in(CurveKeys.load(folder / "alice"))
    assert not protected.lets_in(stranger)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"no file in clients/ has its public key {stranger.public.decode()}" in line


def test_a_key_that_cannot_be_read_keeps_the_present_clients(
    protected: Protected, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "clients" / "broken.key").write_text("no key")
    protected.curve.reload()
    assert protected.lets_in(CurveKeys.load(folder / "alice"))
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("kept the present CURVE keys: cannot read the clients' keys in")


def test_nobody_is_let_in_when_nobody_decides(protected: Protected, folder: Path) -> None:
    protected.curve.stop()
    assert not protected.lets_in(CurveKeys.load(folder / "alice"))
