"""What the clients send when a call ends early, and what they say about keys. No server computes anything."""

from __future__ import annotations

import asyncio
import threading
from _thread import interrupt_main
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq.auth
from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.client.address import CurveKeys
from bert_serving.protocol import Command, CommandRequest, EncodeRequest

from tests.support.bare_server import BareServer
from tests.support.waiting import HANG_S, wait_until


def assert_cancelled(server: BareServer, request: EncodeRequest | CommandRequest) -> None:
    assert isinstance(request, EncodeRequest)
    assert server.next_request() == CommandRequest(request.identity, request.request_id, Command.CANCEL)


# -- calls that end before their reply -------------------------------------------------------------------


def test_call_that_times_out_cancels_its_request() -> None:
    with (
        BareServer() as server,
        BertClient(**server.ports, ignore_all_checks=True, timeout=HANG_S * 1000) as client,
    ):
        client.encode(["connects the client"], blocking=False)
        server.next_request()
        client.timeout = 50
        with pytest.raises(TimeoutError, match="did not reply in time"):
            client.encode(["a"])
        assert_cancelled(server, server.next_request())


def test_interrupted_call_cancels_its_request() -> None:
    arrived: list[EncodeRequest | CommandRequest] = []

    def interrupt(server: BareServer) -> None:
        arrived.append(server.next_request())
        wait_until(lambda: client._channel._is_receiving, "the call does not wait for its reply")
        interrupt_main()

    with BareServer() as server, BertClient(**server.ports, ignore_all_checks=True) as client:
        interrupter = threading.Thread(target=interrupt, args=(server,))
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            client.encode(["a"])
        interrupter.join()
        assert_cancelled(server, arrived[0])


def test_command_that_times_out_is_not_cancelled() -> None:
    with BareServer() as server, BertClient(**server.ports, ignore_all_checks=True, connect_timeout=500) as client:
        with pytest.raises(TimeoutError):
            client.server_config  # noqa: B018
        client.encode(["a"], blocking=False)
        commands = [server.next_request(), server.next_request()]
        assert [type(each) for each in commands] == [CommandRequest, EncodeRequest]


@pytest.mark.parametrize("timeout_ms", [None, 50])
def test_asyncio_call_that_is_cancelled_or_times_out_cancels_its_request(timeout_ms: int | None) -> None:
    async def main(server: BareServer) -> EncodeRequest | CommandRequest:
        async with AsyncBertClient(**server.ports) as client:
            await client._channel.send(lambda now: client._session.command(Command.SHOW_CONFIG, now), float("inf"))
            await asyncio.to_thread(server.next_request)
            call = asyncio.create_task(client.encode_reply(["a"], timeout_ms=timeout_ms))
            request = await asyncio.to_thread(server.next_request)
            if timeout_ms is None:
                call.cancel()
            with pytest.raises((asyncio.CancelledError, TimeoutError)):
                await call
            await asyncio.to_thread(assert_cancelled, server, request)
            return request

    with BareServer() as server:
        request = asyncio.run(main(server))
    assert isinstance(request, EncodeRequest)
    assert request.deadline_ms == timeout_ms


# -- keys ------------------------------------------------------------------------------------------------

ASK: dict[str, Callable[..., object]] = {
    "blocking": BertClient,
    "asyncio": lambda **arguments: asyncio.run(AsyncBertClient(**arguments).server_config()),
}


@pytest.fixture
def curve_dir(tmp_path: Path) -> Path:
    """A folder with the keys of a client, and the public and the secret key of its server."""
    for name in ("server", "client"):
        zmq.auth.create_certificates(tmp_path, name)
    return tmp_path


@pytest.fixture
def keys(curve_dir: Path) -> CurveKeys:
    return CurveKeys.load(curve_dir)


@pytest.fixture
def server_secret(curve_dir: Path) -> bytes:
    secret = zmq.auth.load_certificate(curve_dir / "server.key_secret")[1]
    assert secret is not None
    return secret


def test_client_with_the_right_keys_is_served(curve_dir: Path, keys: CurveKeys, server_secret: bytes) -> None:
    with (
        BareServer(secret=server_secret, allowed=[keys.public]) as server,
        BertClient(**server.ports, ignore_all_checks=True, curve_dir=str(curve_dir)) as client,
    ):
        client.encode(["a"], blocking=False)
        request = server.next_request()
        assert isinstance(request, EncodeRequest)
        assert request.texts == ["a"]


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK.keys())
def test_server_that_refuses_the_key_is_named_as_the_reason(
    ask: Callable[..., object], curve_dir: Path, server_secret: bytes
) -> None:
    with BareServer(secret=server_secret) as server, pytest.raises(TimeoutError, match="server refused the key"):
        ask(**server.ports, curve_dir=str(curve_dir), connect_timeout=500)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK.keys())
def test_wrong_key_of_the_server_is_named_as_the_reason(ask: Callable[..., object], curve_dir: Path) -> None:
    other_secret = zmq.curve_keypair()[1]
    with (
        BareServer(secret=other_secret) as server,
        pytest.raises(TimeoutError, match=r"is server\.key the key of"),
    ):
        ask(**server.ports, curve_dir=str(curve_dir), connect_timeout=500)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK.keys())
def test_missing_key_is_named_as_the_reason(ask: Callable[..., object], server_secret: bytes) -> None:
    with BareServer(secret=server_secret) as server, pytest.raises(TimeoutError, match="server requires a key"):
        ask(**server.ports, connect_timeout=500)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK.keys())
def test_server_without_keys_is_named_as_the_reason(ask: Callable[..., object], curve_dir: Path) -> None:
    with BareServer() as server, pytest.raises(TimeoutError, match="server uses no keys; leave out curve_dir"):
        ask(**server.ports, curve_dir=str(curve_dir), connect_timeout=500)
