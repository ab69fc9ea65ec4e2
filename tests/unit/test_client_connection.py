"""What the clients send when a call ends early, and what they say about keys. No server computes anything."""

from __future__ import annotations

import asyncio
import signal
import threading
from _thread import interrupt_main
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zmq.auth
from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient
from bert_serving.client.address import CurveKeys
from bert_serving.protocol import (
    Command,
    CommandRequest,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    Overloaded,
    Reply,
    ServingError,
    Unavailable,
)

from tests.support.bare_server import BareServer
from tests.support.cutting_proxy import Proxy
from tests.support.waiting import HANG_S, wait_until


def assert_cancelled(server: BareServer, request: EncodeRequest | CommandRequest) -> None:
    assert isinstance(request, EncodeRequest)
    assert server.next_request() == CommandRequest(request.identity, request.request_id, Command.CANCEL)


# -- calls that end before their reply -------------------------------------------------------------------


def test_call_that_times_out_cancels_its_request() -> None:
    with BareServer() as server, BertClient(**server.ports) as client:
        client.timeout = 300
        with pytest.raises(TimeoutError, match="did not reply in time"):
            client.encode(["a"])
        assert_cancelled(server, server.next_request())


def test_interrupted_call_cancels_its_request() -> None:
    arrived: list[EncodeRequest | CommandRequest] = []

    def interrupt(server: BareServer) -> None:
        arrived.append(server.next_request())
        wait_until(lambda: client._channel._is_receiving, "the call does not wait for its reply")
        interrupt_main()

    with BareServer() as server, BertClient(**server.ports) as client:
        interrupter = threading.Thread(target=interrupt, args=(server,))
        # A shell lets programs that it starts in the background ignore this signal.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            interrupter.start()
            with pytest.raises(KeyboardInterrupt):
                client.encode(["a"])
        finally:
            signal.signal(signal.SIGINT, before)
        interrupter.join()
        assert_cancelled(server, arrived[0])


def test_command_that_times_out_is_not_cancelled() -> None:
    with BareServer() as server, BertClient(**server.ports) as client:
        client.timeout = 300
        with pytest.raises(TimeoutError):
            client.server_status  # noqa: B018
        client.encode(["a"], blocking=False)
        assert [type(server.next_request()) for _ in range(2)] == [CommandRequest, EncodeRequest]


@pytest.mark.parametrize("timeout_ms", [None, 300])
def test_asyncio_call_that_is_cancelled_or_times_out_cancels_its_request(timeout_ms: int | None) -> None:
    async def main(server: BareServer) -> EncodeRequest | CommandRequest:
        async with AsyncBertClient(**server.ports) as client:
            await client.server_config()
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
    assert request.deadline_ms in ([None] if timeout_ms is None else range(1, timeout_ms + 1))


# -- subscriptions ---------------------------------------------------------------------------------------


def test_request_is_sent_only_after_the_server_has_read_the_subscription() -> None:
    with BareServer(num_silent=2) as server, BertClient(**server.ports, ignore_all_checks=True) as client:
        client.encode(["a"], blocking=False)
        server.next_request()
        assert server.num_configs >= 3


def test_asyncio_request_is_sent_only_after_the_server_has_read_the_subscription() -> None:
    async def main(server: BareServer) -> None:
        async with AsyncBertClient(**server.ports) as client:
            call = asyncio.create_task(client.encode(["a"]))
            await asyncio.to_thread(server.next_request)
            call.cancel()

    with BareServer(num_silent=1) as server:
        asyncio.run(main(server))
        assert server.num_configs >= 2


def test_ports_of_two_servers_are_an_error_that_says_so() -> None:
    with BareServer() as one, BareServer() as other:
        ports = rf"localhost:{one.port} \(port\), localhost:{other.port_out} \(port_out\)"
        with pytest.raises(TimeoutError, match=f"no reply from {ports}: do both ports belong to the same server"):
            BertClient(port=one.port, port_out=other.port_out, connect_timeout=500)


def test_broken_connection_for_replies_alone_fails_a_call_that_is_not_sent_again_and_the_next_one_works() -> None:
    with (
        BareServer(answer_texts({"b"})) as server,
        Proxy(server.port_out) as proxy,
        BertClient(port=server.port, port_out=proxy.port, retry=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.encode, ["a"])
        server.next_request()
        proxy.cut()
        with pytest.raises(ConnectionError, match="went away"):
            waiting.result(HANG_S)
        before = server.num_configs
        assert client.encode(["b"]).shape == (1, 1)
        assert server.num_configs > before  # the new subscription was checked too


def test_call_is_sent_again_when_the_connection_for_replies_broke() -> None:
    known: set[str] = set()
    with (
        BareServer(answer_texts(known)) as server,
        Proxy(server.port_out) as proxy,
        BertClient(port=server.port, port_out=proxy.port) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.encode, ["a"])
        first = server.next_request()
        known.add("a")
        proxy.cut()
        assert waiting.result(HANG_S).shape == (1, 1)
        assert server.next_request() == first


def test_asyncio_call_is_sent_again_when_the_connection_for_replies_broke() -> None:
    known: set[str] = set()

    async def main(server: BareServer, proxy: Proxy) -> None:
        async with AsyncBertClient(port=server.port, port_out=proxy.port) as client:
            call = asyncio.create_task(client.encode(["a"]))
            await asyncio.to_thread(server.next_request)
            known.add("a")
            await asyncio.to_thread(proxy.cut)
            assert (await asyncio.wait_for(call, HANG_S)).shape == (1, 1)

    with BareServer(answer_texts(known)) as server, Proxy(server.port_out) as proxy:
        asyncio.run(main(server, proxy))


# -- refused requests ------------------------------------------------------------------------------------


def answer_texts(known: set[str]) -> Callable[[EncodeRequest | CommandRequest], Reply | None]:
    """Return a function that replies to requests for these texts."""

    def answer(request: EncodeRequest | CommandRequest) -> Reply | None:
        if isinstance(request, CommandRequest) or not set(map(str, request.texts)) <= known:
            return None
        return EncodeReply(request.identity, request.request_id, np.zeros((len(request.texts), 1), np.float32))

    return answer


class Busy:
    """Refuses each request once, then replies to it."""

    def __init__(self, error: ServingError) -> None:
        self._error = error
        self._refused: set[bytes] = set()

    def __call__(self, request: EncodeRequest | CommandRequest) -> Reply | None:
        if request.request_id in self._refused:
            return answer_texts({"a"})(request)
        self._refused.add(request.request_id)
        return ErrorReply(request.identity, request.request_id, self._error)


REFUSALS = [Overloaded("the queue is full", retry_after_ms=20), Unavailable("no worker", retry_after_ms=20)]


@pytest.mark.parametrize("error", REFUSALS)
def test_refused_request_is_sent_again(error: ServingError) -> None:
    with BareServer(Busy(error)) as server:
        with BertClient(**server.ports) as client:
            assert client.encode(["a"]).shape == (1, 1)
            client.encode(["a"], blocking=False)
            assert client.fetch_all(concat=True).shape == (1, 1)
            assert [len(each.embedding) for each in client.encode_async([["a"]] * 3)] == [1, 1, 1]
        with ConcurrentBertClient(**server.ports) as concurrent:
            assert concurrent.encode(["a"]).shape == (1, 1)


@pytest.mark.parametrize("error", REFUSALS)
def test_refused_request_of_the_asyncio_client_is_sent_again(error: ServingError) -> None:
    async def main(server: BareServer) -> list[object]:
        async with AsyncBertClient(**server.ports) as client:
            return [rows.shape for rows in await asyncio.gather(*(client.encode(["a"]) for _ in range(3)))]

    with BareServer(Busy(error)) as server:
        assert asyncio.run(main(server)) == [(1, 1)] * 3


def test_refusal_is_raised_at_once_without_retry_and_without_time_for_it() -> None:
    with BareServer(Busy(Overloaded("the queue is full", retry_after_ms=10**12))) as server:
        with BertClient(**server.ports, retry=False) as client, pytest.raises(Overloaded):
            client.encode(["a"])
        with BertClient(**server.ports, timeout=HANG_S * 1000) as client, pytest.raises(Overloaded):
            client.encode(["a"])


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


def test_client_that_was_refused_is_served_as_soon_as_its_key_is_allowed(
    curve_dir: Path, keys: CurveKeys, server_secret: bytes
) -> None:
    with (
        BareServer(secret=server_secret) as server,
        BertClient(
            **server.ports, ignore_all_checks=True, curve_dir=str(curve_dir), connect_timeout=300
        ) as client,
    ):
        with pytest.raises(TimeoutError, match="server refused the key"):
            client.server_config  # noqa: B018
        server.allowed = [keys.public]
        client.connect_timeout = HANG_S * 1000
        assert client.server_config["server_version"] == "1.10.0"


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
    with BareServer() as server, pytest.raises(TimeoutError, match="server uses no keys"):
        ask(**server.ports, curve_dir=str(curve_dir), connect_timeout=500)
