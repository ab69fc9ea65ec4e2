"""The limits of HTTP hold under TLS too, and the handshake has the limits of a head."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterator

import pytest
from bert_serving.server.gateway.http_protocol import LEFT
from bert_serving.server.gateway.tls import Tls
from bert_serving.server.tls import CertificateSource

from tests.support.certificates import Authority
from tests.support.gateway import make_connection_limits
from tests.support.small_gateway import BIG, SmallGateway, read_all
from tests.support.waiting import wait_until

ALIVE = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
MAX_CONNECTIONS = 20
ASYNCIO_HANDSHAKE_S = 60  # if no limit is given
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how it begins


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> CertificateSource:
    folder = tmp_path_factory.mktemp("certificate")
    authority.issue(folder / "cert.pem", folder / "key.pem")
    return CertificateSource(folder / "cert.pem", folder / "key.pem")


@pytest.fixture(scope="module")
def gateway(certificate: CertificateSource) -> Iterator[SmallGateway]:
    limits = make_connection_limits(
        max_connections=MAX_CONNECTIONS, head_timeout_s=2.0, body_timeout_s=0.5, response_timeout_s=0.5
    )
    with SmallGateway(limits, Tls(certificate)) as running:
        yield running


class Caller:
    """Connects with TLS. Each method is the one of SmallGateway."""

    def __init__(self, gateway: SmallGateway, authority: Authority) -> None:
        self._gateway = gateway
        self._context = authority.client_context

    def connect(self, sent: bytes = b"", *, receive_bytes: int | None = None) -> ssl.SSLSocket:
        plain = self._gateway.connect(receive_bytes=receive_bytes)
        encrypted = self._context.wrap_socket(plain, server_hostname="localhost")
        encrypted.sendall(sent)
        return encrypted

    def ask(self, sent: bytes) -> bytes:
        with self.connect(sent) as caller:
            return read_all(caller)


@pytest.fixture
def caller(gateway: SmallGateway, authority: Authority) -> Caller:
    return Caller(gateway, authority)


@pytest.fixture(autouse=True)
def _others_are_served_and_no_error_is_logged(caller: Caller, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert caller.ask(ALIVE).startswith(b"HTTP/1.1 200 ")
    assert [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR] == []


def has_connection(gateway: SmallGateway, port: int) -> bool:
    return any(getattr(each, "client", None) == ("127.0.0.1", port) for each in list(gateway.pool.connections))


# -- handshakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", CLIENT_HELLO], ids=["nothing", "a beginning"])
def test_a_handshake_that_does_not_end_is_closed(gateway: SmallGateway, sent: bytes) -> None:
    with gateway.connect(sent) as caller:
        caller.settimeout(ASYNCIO_HANDSHAKE_S / 2)
        assert read_all(caller) == b""
    wait_until(lambda: not gateway.pool.connections)


@pytest.mark.parametrize("sent", [ALIVE, b"\x00" * 1000])
def test_what_is_not_tls_is_closed(gateway: SmallGateway, sent: bytes) -> None:
    assert b"HTTP" not in gateway.ask(sent)


def test_a_handshake_takes_the_place_of_a_connection(certificate: CertificateSource, authority: Authority) -> None:
    limits = make_connection_limits(max_connections=MAX_CONNECTIONS, head_timeout_s=3600)
    with SmallGateway(limits, Tls(certificate)) as running, contextlib.ExitStack() as stack:
        unfinished = [stack.enter_context(running.connect(CLIENT_HELLO)) for _ in range(3 * MAX_CONNECTIONS)]
        assert Caller(running, authority).ask(ALIVE).startswith(b"HTTP/1.1 200 ")
        assert [read_all(each) for each in unfinished[: 2 * MAX_CONNECTIONS]] == [b""] * (2 * MAX_CONNECTIONS)


def test_requests_that_are_computed_keep_their_connections(gateway: SmallGateway, caller: Caller) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(caller.connect(POST % (b"wait", 0)))
        wait_until(lambda: gateway.num_waiting == MAX_CONNECTIONS)
        refused = caller.ask(b"")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused
        assert gateway.num_waiting == MAX_CONNECTIONS
    wait_until(lambda: gateway.num_waiting == 0)


def test_a_crowd_of_handshakes_is_bounded_while_all_connections_compute(
    gateway: SmallGateway, caller: Caller
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(caller.connect(POST % (b"wait", 0)))
        wait_until(lambda: gateway.num_waiting == MAX_CONNECTIONS)
        crowd = [stack.enter_context(gateway.connect()) for _ in range(150)]
        assert [read_all(each) for each in crowd] == [b""] * 150
        assert gateway.num_waiting == MAX_CONNECTIONS
    wait_until(lambda: gateway.num_waiting == 0)


# -- requests ------------------------------------------------------------------------------------------


def test_requests_that_are_sent_at_once_are_answered_in_order(caller: Caller) -> None:
    sizes = [0, 1, 5000, 70_000, 300_000, *range(2, 100)]
    received = caller.ask(b"".join(POST % (b"echo", size) + b"x" * size for size in sizes) + ALIVE)
    bodies = [piece.partition(b"\r\n\r\n")[2] for piece in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [int(body) for body in bodies] == [*sizes, 0]


def test_a_connection_without_a_request_is_closed(caller: Caller) -> None:
    assert caller.ask(b"") == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", 408),
        (POST % (b"echo", 100) + b"x" * 50, 408),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
        (b"hello\r\n\r\n", 400),
    ],
    ids=["slow head", "slow body", "large head", "not HTTP"],
)
def test_a_refusal_reaches_the_caller(caller: Caller, sent: bytes, status: int) -> None:
    assert caller.ask(sent).startswith(b"HTTP/1.1 %d " % status)


# -- responses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
def test_a_response_that_is_not_read_ends_with_its_connection(
    gateway: SmallGateway, caller: Caller, end: bytes
) -> None:
    with caller.connect(b"GET /big HTTP/1.1\r\nHost: x\r\n" + end + b"\r\n", receive_bytes=4096) as slow:
        port = slow.getsockname()[1]
        wait_until(lambda: has_connection(gateway, port))
        wait_until(lambda: not has_connection(gateway, port))
        assert len(read_all(slow)) < BIG


def test_a_response_that_is_read_is_complete(caller: Caller) -> None:
    request = b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert len(caller.ask(request).partition(b"\r\n\r\n")[2]) == BIG


def test_a_caller_need_not_confirm_the_end_of_a_connection(gateway: SmallGateway, caller: Caller) -> None:
    with caller.connect(ALIVE) as silent:
        port = silent.getsockname()[1]
        silent.recv(1)
        wait_until(lambda: not has_connection(gateway, port))


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_the_request_of_a_caller_that_leaves_is_cancelled(
    gateway: SmallGateway, caller: Caller, size: int
) -> None:
    gateway.ended.clear()
    with caller.connect(POST % (b"wait", size) + b"x" * size):
        wait_until(lambda: gateway.num_waiting == 1)
    wait_until(lambda: gateway.ended == [LEFT])


def test_a_caller_that_leaves_is_noticed_while_its_body_is_not_read(gateway: SmallGateway, caller: Caller) -> None:
    gateway.ended.clear()
    with caller.connect(POST % (b"unread", 1 << 20) + b"x" * 100_000):
        wait_until(lambda: gateway.num_waiting == 1)
    wait_until(lambda: gateway.ended == [LEFT])


def test_a_gateway_stops_although_a_handshake_has_not_ended(
    certificate: CertificateSource, caplog: pytest.LogCaptureFixture
) -> None:
    """From Python 3.12 on, uvicorn waits for all connections when it stops, and logs an error if one is left."""
    with SmallGateway(make_connection_limits(), Tls(certificate)) as running:
        unfinished = running.connect(CLIENT_HELLO)
        wait_until(lambda: running.pool.connections)
    with unfinished:
        assert read_all(unfinished) == b""
    assert "graceful shutdown exceeded" not in caplog.text
