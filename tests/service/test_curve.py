"""A server with CURVE: clients with a known key use it as before, and nobody else gets in or hears anything."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.client.address import CurveKeys
from bert_serving.server.cli.key_folder import KeyFolder
from zmq.auth.certs import load_certificate

from tests.support.running_server import RunningServer, command, run_start
from tests.support.waiting import HANG_S, wait_until

REFUSED = "the server refused the key of this client"
NEEDS_KEY = "the server requires a key"


@dataclass(frozen=True)
class Curved:
    """A running server with CURVE, its keys, and the keys of a client that it does not know."""

    running: RunningServer
    folder: Path
    stranger: Path

    @property
    def alice(self) -> Path:
        """The keys of a client that the server knows."""
        return self.folder / "alice"

    def run(self, name: str, *args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(name, "-port", self.running.port, *args),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )


@pytest.fixture(scope="module")
def curved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Curved]:
    folder, other = tmp_path_factory.mktemp("keys"), tmp_path_factory.mktemp("other")
    KeyFolder(folder).make(["alice"])
    KeyFolder(other).make(["mallory"])
    (other / "mallory" / "server.key").write_bytes((folder / "server.key").read_bytes())
    with RunningServer("-model_dir", tiny, "-cpu", "-curve_dir", folder) as running:
        yield Curved(running.wait_ready(), folder, other / "mallory")


def connect(curved: Curved, **options: Any) -> BertClient:
    return BertClient(**curved.running.ports, **{"curve_dir": curved.alice, **options})


def test_both_clients_and_http_work(curved: Curved) -> None:
    with connect(curved) as client:
        rows = client.encode(["hello world"])
        config = client.server_config
    assert (rows.shape, config["curve"]) == ((1, 64), True)

    async def encode() -> Any:
        async with AsyncBertClient(**curved.running.ports, curve_dir=str(curved.alice)) as other:
            return await other.encode(["hello world"])

    assert (asyncio.run(encode()) == rows).all()
    reply = httpx.post(f"{curved.running.url}/embed", json={"inputs": "hello world"}, timeout=HANG_S)
    assert len(reply.json()[0]) == 64


@pytest.mark.parametrize(("key", "said"), [(None, NEEDS_KEY), ("stranger", REFUSED)])
def test_without_a_known_key_a_call_ends_in_an_error_that_says_so(
    curved: Curved, key: str | None, said: str
) -> None:
    folder = None if key is None else curved.stranger
    with pytest.raises(TimeoutError, match=said):
        connect(curved, curve_dir=folder, connect_timeout=3000)


def test_a_client_that_expects_another_server_gets_an_error(curved: Curved, tmp_path: Path) -> None:
    KeyFolder(tmp_path).make(["alice"])
    with pytest.raises(TimeoutError, match=r"is server\.key the key of this server\?"):
        connect(curved, curve_dir=tmp_path / "alice", connect_timeout=3000)


def test_a_stranger_hears_no_reply_even_if_he_knows_the_identity(curved: Curved) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as plain, context.socket(zmq.SUB) as keyed:
        CurveKeys.load(curved.stranger).apply_to(keyed)
        monitors = []
        for socket in (plain, keyed):
            socket.linger = 0
            monitors.append(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED))
            socket.subscribe(b"alice")
            socket.connect(f"tcp://127.0.0.1:{curved.running.port_out}")
        for monitor in monitors:  # both have been turned away, so what follows does not depend on time
            assert monitor.poll(HANG_S * 1000)
            assert int.from_bytes(monitor.recv_multipart()[0][:2], "little") == zmq.EVENT_DISCONNECTED
        with connect(curved, identity=b"alice") as client:
            for _ in range(3):
                client.encode(["hello world"])
        for socket in (plain, keyed):
            assert not socket.poll(0)
            socket.disable_monitor()


def test_status_needs_a_key_too(curved: Curved) -> None:
    args = ("-port_out", curved.running.port_out, "-json")
    done = curved.run("bert-serving-status", *args, "-curve_dir", curved.alice)
    assert json.loads(done.stdout)["curve"] is True
    for flags, said in (
        ((), NEEDS_KEY),
        (("-curve_dir", curved.stranger), REFUSED),
        (("-curve_dir", curved.folder), "there is no"),
    ):
        refused = curved.run("bert-serving-status", *args, *flags)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_new_client_is_let_in_after_sighup(curved: Curved) -> None:
    KeyFolder(curved.folder).make(["bob"])
    with pytest.raises(TimeoutError, match=REFUSED):
        connect(curved, curve_dir=curved.folder / "bob", connect_timeout=3000)
    curved.running.signal(signal.SIGHUP)
    curved.running.wait_for("read the CURVE keys clients=2")
    with connect(curved, curve_dir=curved.folder / "bob") as client:
        assert client.encode(["hello"]).shape == (1, 64)


def test_no_secret_is_in_the_log_or_in_the_config(curved: Curved) -> None:
    _, secret = load_certificate(curved.folder / "server.key_secret")
    assert secret is not None
    with connect(curved) as client:
        shown = curved.running.log + str(client.server_status)
    assert secret.decode() not in shown
    assert "CURVE is on clients=1" in shown


def test_a_missing_folder_ends_the_start_in_one_line(tiny: Path, tmp_path: Path) -> None:
    done = run_start("-model_dir", tiny, "-cpu", "-curve_dir", tmp_path / "none")
    assert done.returncode == 1
    assert "server.key_secret" in done.stderr
    assert "bert-serving-keys makes this file" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_a_known_key_can_stop_the_server(curved: Curved) -> None:
    for flags, said in (((), "requires a"), (("-curve_dir", curved.stranger), REFUSED)):
        refused = curved.run("bert-serving-terminate", *flags)
        assert refused.returncode == 1
        assert said in refused.stderr
    with connect(curved) as client:
        assert client.encode(["still there"]).shape == (1, 64)
    assert curved.run("bert-serving-terminate", "-curve_dir", curved.alice).returncode == 0
    assert curved.running.wait_end() == 0
    wait_until(lambda: "termination requested peer=127.0.0.1" in curved.running.log)
    curved.running.assert_nothing_left()
