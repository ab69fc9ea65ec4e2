"""A caller that is slow, silent or too large gets a clear error or is closed, and other callers do not notice."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import Iterator

import pytest
from bert_serving.server.gateway.http_protocol import LEFT, LimitedConnection

from tests.support.gateway import make_connection_limits
from tests.support.small_gateway import BIG, SmallGateway, read_all
from tests.support.waiting import wait_until

ALIVE = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
MAX_CONNECTIONS = 50
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nUpgrade: h2c\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


@pytest.fixture(scope="module")
def gateway() -> Iterator[SmallGateway]:
    limits = make_connection_limits(
        max_connections=MAX_CONNECTIONS,
        max_headers=20,
        head_timeout_s=0.5,
        body_timeout_s=0.5,
        response_timeout_s=0.5,
    )
    with SmallGateway(limits) as running:
        yield running


@pytest.fixture(autouse=True)
def _others_are_served_and_no_error_is_logged(
    gateway: SmallGateway, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    assert gateway.ask(ALIVE).startswith(b"HTTP/1.1 200 ")
    assert [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR] == []


def status_of(response: bytes) -> int:
    """Return the status, after a check that the body is an error in bert-as-service's format."""
    head, _, body = response.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert json.loads(body).keys() == {"description", "type", "status"}
    assert b"connection: close" in head.lower()
    return status


def is_closed(caller: socket.socket) -> bool:
    """Whether the gateway has closed the connection. Does not wait."""
    caller.setblocking(False)
    try:
        return caller.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


# -- heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 15_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 21 + b"\r\n",
    ],
    ids=["path", "header", "many headers", "complete", "one header too many"],
)
def test_a_head_that_is_too_large_is_431(gateway: SmallGateway, head: bytes) -> None:
    num_refusals = gateway.refusals.count(431)
    assert status_of(gateway.ask(head)) == 431
    assert gateway.refusals.count(431) == num_refusals + 1


def test_a_head_within_the_limits_is_not_refused_however_large_the_body_is(gateway: SmallGateway) -> None:
    head = POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nX: " + b"a" * 60_000 + b"\r\n\r\n")
    assert gateway.ask(head % (b"echo", 1 << 20) + b"b" * (1 << 20)).endswith(b"\r\n1048576")


def test_a_header_without_end_is_refused_while_it_is_sent(gateway: SmallGateway) -> None:
    num_refusals = gateway.refusals.count(431)
    with gateway.connect(b"GET / HTTP/1.1\r\nX: ") as caller:
        with contextlib.suppress(ConnectionError):  # the gateway ignores the rest for two seconds, then it closes
            caller.sendall(b"a" * (100 << 20))
        read_all(caller)
    assert gateway.refusals.count(431) == num_refusals + 1


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_arrive_is_408(gateway: SmallGateway, sent: bytes) -> None:
    assert status_of(gateway.ask(sent)) == 408


def test_a_connection_without_a_request_is_closed(gateway: SmallGateway) -> None:
    assert gateway.ask(b"") == b""


def test_what_is_not_http_is_400(gateway: SmallGateway) -> None:
    assert status_of(gateway.ask(b"\x16\x03\x01 hello\r\n\r\n")) == 400


# -- bodies --------------------------------------------------------------------------------------------


def test_a_body_that_is_not_http_is_400(gateway: SmallGateway) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status_of(gateway.ask(head + b"no size\r\n")) == 400


def test_a_body_that_stops_is_408(gateway: SmallGateway) -> None:
    assert status_of(gateway.ask(POST % (b"echo", 100) + b"x" * 50)) == 408


def test_a_stream_may_be_slow_but_not_silent(gateway: SmallGateway) -> None:
    assert status_of(gateway.ask(POST % (b"slow", 4) + b"xx")) == 408


CHUNKED = b"POST /%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"


@pytest.mark.parametrize("path", [b"echo", b"early"], ids=["before the response", "after the response"])
@pytest.mark.parametrize(
    "endless",
    [b"0\r\nX: ", b"0\r\n" + b"X: a\r\n" * 5_000 + b"X: ", b"5;x="],
    ids=["trailer", "trailers", "extension"],
)
def test_a_trailer_or_an_extension_without_end_is_refused_while_it_is_sent(
    gateway: SmallGateway, path: bytes, endless: bytes
) -> None:
    num_refusals = gateway.refusals.count(431)
    gateway.ended.clear()
    with gateway.connect(CHUNKED % path + endless) as caller:
        first = caller.recv(1 << 16) if path == b"early" else b""
        with contextlib.suppress(ConnectionError):  # the gateway ignores the rest for two seconds, then it closes
            caller.sendall(b"a" * (100 << 20))
        read_all(caller)
    assert first[:13] in (b"", b"HTTP/1.1 200 ")
    assert gateway.refusals.count(431) + gateway.ended.count(431) == num_refusals + 1


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"5;x="], ids=["trailer", "extension"])
def test_a_trailer_or_an_extension_that_is_too_large_is_431(gateway: SmallGateway, endless: bytes) -> None:
    assert status_of(gateway.ask(CHUNKED % b"echo" + endless + b"a" * 140_000)) == 431


def test_chunks_with_small_extensions_and_a_trailer_are_a_body(gateway: SmallGateway) -> None:
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % b"echo"
    chunk = b"2;x=" + b"a" * 1000 + b"\r\ncd\r\n"
    response = gateway.ask(head + chunk * 1000 + b"0\r\nX: " + b"a" * 60_000 + b"\r\n\r\n")
    assert response.endswith(b"\r\n2002")


# -- responses -----------------------------------------------------------------------------------------


def test_a_response_that_is_not_read_ends_with_its_connection(gateway: SmallGateway) -> None:
    with gateway.connect(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n", receive_bytes=4096) as caller:
        port = caller.getsockname()[1]
        wait_until(lambda: any(each.client and each.client[1] == port for each in list(gateway.pool.connections)))
        wait_until(lambda: all(each.client and each.client[1] != port for each in list(gateway.pool.connections)))
        assert len(read_all(caller)) < BIG


def test_a_response_that_is_read_is_complete(gateway: SmallGateway) -> None:
    request = b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert len(gateway.ask(request).partition(b"\r\n\r\n")[2]) == BIG


# -- connections ---------------------------------------------------------------------------------------


def test_a_new_connection_takes_the_place_of_the_one_that_is_silent_longest(gateway: SmallGateway) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(gateway.connect()) for _ in range(2 * MAX_CONNECTIONS)]
        assert gateway.ask(ALIVE).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: all(map(is_closed, idle[:MAX_CONNECTIONS])))
        assert len(gateway.pool.connections) <= MAX_CONNECTIONS


def test_requests_that_are_computed_keep_their_connections(gateway: SmallGateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(gateway.connect(POST % (b"wait", 0)))
        wait_until(lambda: gateway.num_waiting == MAX_CONNECTIONS)
        refused = gateway.ask(b"")
        assert status_of(refused) == 503
        assert b"retry-after: 1" in refused
        assert gateway.num_waiting == MAX_CONNECTIONS
    wait_until(lambda: gateway.num_waiting == 0)


def test_requests_that_are_sent_at_once_on_one_connection_are_answered_in_order(gateway: SmallGateway) -> None:
    sizes = [0, 1, 5000, 70_000, *range(2, 400)]
    sent = b"".join(POST % (b"echo", size) + b"x" * size for size in sizes)
    received = gateway.ask(sent + ALIVE)
    bodies = [piece.partition(b"\r\n\r\n")[2] for piece in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [int(body) for body in bodies] == [*sizes, 0]


def test_many_requests_behind_a_body_are_answered_too(gateway: SmallGateway) -> None:
    sent = POST % (b"echo", 2000) + b"x" * 2000 + (POST % (b"echo", 0)) * 500
    received = gateway.ask(sent + ALIVE)
    assert received.count(b"HTTP/1.1 200 OK") == 502


def test_a_crowd_of_requests_behind_a_chunked_body_is_refused(gateway: SmallGateway) -> None:
    body = b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
    sent = CHUNKED % b"wait" + body + b"GET /live HTTP/1.1\r\n\r\n" * 2000
    with gateway.connect(sent) as caller:
        assert read_all(caller) == b""  # the first request has no response yet, so the connection is closed
    wait_until(lambda: gateway.num_waiting == 0)


def test_too_many_headers_and_an_offer_are_431(gateway: SmallGateway) -> None:
    sent = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + H2C + b"X: a\r\n" * 30 + b"Content-Length: 2\r\n\r\nab"
    assert status_of(gateway.ask(sent)) == 431


def test_only_a_few_requests_of_one_connection_are_parsed_before_their_turn(gateway: SmallGateway) -> None:
    wait = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
    with gateway.connect(wait * 3000):
        wait_until(lambda: gateway.num_waiting == 1 and _paused(gateway))
        (connection,) = _paused(gateway)
        assert 16 <= len(connection.pipeline) <= 16 + 1024 // len(wait)
    wait_until(lambda: gateway.num_waiting == 0)


# -- offers of another protocol ------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("framing", "size"),
    [
        (b"Content-Length: 5000\r\n\r\n" + b"x" * 5000, 5000),
        (b"Content-Length: 0\r\n\r\n", 0),
        (b"\r\n", 0),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 5),
    ],
    ids=["length", "no bytes", "no body", "chunked"],
)
def test_an_offer_of_another_protocol_is_ignored_and_the_body_is_read(
    gateway: SmallGateway, offer: bytes, step: int, framing: bytes, size: int
) -> None:
    """Java's java.net.http.HttpClient offers h2c with the first request of a connection."""
    request = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + offer + framing
    sent = request * 2 + ALIVE
    with gateway.connect() as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), step):
            caller.sendall(sent[start : start + step])
        received = read_all(caller)
    bodies = [piece.partition(b"\r\n\r\n")[2] for piece in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [int(body) for body in bodies] == [size, size, 0]


def test_a_wrong_body_after_an_offer_is_400(gateway: SmallGateway) -> None:
    sent = POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked\r\n" + H2C[:-2]) % b"echo" + b"z\r\n"
    assert status_of(gateway.ask(sent)) == 400


# -- callers that leave --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 1 << 20])
def test_the_request_of_a_caller_that_leaves_is_cancelled(gateway: SmallGateway, size: int) -> None:
    gateway.ended.clear()
    with gateway.connect(POST % (b"wait", size) + b"x" * size):
        wait_until(lambda: gateway.num_waiting == 1)
    wait_until(lambda: gateway.ended == [LEFT])


def test_a_caller_that_leaves_is_noticed_while_its_body_is_not_read(gateway: SmallGateway) -> None:
    gateway.ended.clear()
    with gateway.connect(POST % (b"unread", 1 << 20) + b"x" * 100_000) as caller:
        port = caller.getsockname()[1]
        wait_until(lambda: port in {each.client[1] for each in _paused(gateway) if each.client})
        wait_until(lambda: gateway.num_waiting == 1)
    wait_until(lambda: gateway.ended == [LEFT])


def _paused(gateway: SmallGateway) -> list[LimitedConnection]:
    return [each for each in list(gateway.pool.connections) if each.flow.read_paused]


def test_a_caller_that_stays_gets_its_response_after_another_has_left(gateway: SmallGateway) -> None:
    two = (POST % (b"echo", 2) + b"ab") * 2
    with gateway.connect(two) as caller:
        received = b""
        while received.count(b"\r\n\r\n2") < 2:
            received += caller.recv(1 << 16)
