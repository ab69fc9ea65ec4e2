"""Bad neighbours that use the HTTP port. Each function attacks until `until`, in monotonic seconds.

They connect from 127.0.0.2, and the victim connects from 127.0.0.1: the server must not take them for one caller.
"""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPException

from tests.hostile.target import Target
from tests.support.sentences import numbered

_SOURCE = ("127.0.0.2", 0)
_TIMEOUT_S = 5.0
_NUM_THREADS = 8
_NUM_STALLED = 300


def floods_with_requests(target: Target, until: float) -> None:
    """Send valid requests of one text as fast as eight connections allow."""
    _post_in_threads(target, until, "/v1/embeddings", json.dumps({"input": "a short text", "model": "m"}).encode())


def floods_with_metrics(target: Target, until: float) -> None:
    """Ask for the metrics as fast as eight connections allow."""
    _in_threads(until, lambda: _send(target, "GET", "/metrics"))


def stalls_in_the_head(target: Target, until: float) -> None:
    """Open connections, send the first line of a request, and then one byte a second."""
    _stall(target, until, b"POST /encode HTTP/1.1\r\nHost: a\r\nX-A: ")


def stalls_in_the_body(target: Target, until: float) -> None:
    """Announce a body of 200 MB on each connection, and send one byte a second."""
    _stall(target, until, b"POST /encode HTTP/1.1\r\nHost: a\r\nContent-Length: 200000000\r\n\r\n{")


def does_not_read(target: Target, until: float) -> None:
    """Ask for large replies and read none of them."""
    request = _request("/encode", json.dumps({"id": 1, "texts": numbered("a", 2000)}).encode())
    with ExitStack() as stack:
        while time.monotonic() < until:
            connection = stack.enter_context(_connect(target))
            with suppress(OSError):
                connection.sendall(request)
            time.sleep(0.1)


def leaves(target: Target, until: float) -> None:
    """Send a large request and close the connection at once."""
    request = _request("/encode", json.dumps({"id": 1, "texts": numbered("one two three four", 2000)}).encode())
    while time.monotonic() < until:
        with suppress(OSError), _connect(target) as connection:
            connection.sendall(request)
            time.sleep(0.05)


def sends_gzip_bombs(target: Target, until: float) -> None:
    """Send a few hundred kilobytes that become a list of 50 million wrong items."""
    body = gzip.compress(b'{"inputs":[' + b"1," * 50_000_000 + b"1]}", 6)
    _post_in_threads(target, until, "/tokenize", body, {"Content-Encoding": "gzip"}, num_threads=2)


def sends_wrong_items(target: Target, until: float) -> None:
    """Send lists of three million wrong items, each of which would be an error of its own."""
    _post_in_threads(target, until, "/tokenize", b'{"inputs":[' + b"1," * 3_000_000 + b"1]}", num_threads=2)


def sends_many_values(target: Target, until: float) -> None:
    """Send texts that are lists of token ids, with almost as many ids as a request may hold."""
    body = b'{"model":"m","input":[' + b",".join([b"[" + b",".join([b"100"] * 500) + b"]"] * 8000) + b"]}"
    _post_in_threads(target, until, "/v1/embeddings", body, num_threads=2)


def sends_odd_ids(target: Target, until: float) -> None:
    """Send large bodies with an id that is hard to return as it was sent."""
    body = b'{"id":1.5,"texts":[' + b'"a",' * 1_000_000 + b'"a"]}'
    _post_in_threads(target, until, "/encode", body, num_threads=2)


def sends_form_fields(target: Target, until: float) -> None:
    """Send forms of a million fields."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    _post_in_threads(target, until, "/encode", b"texts=a&" * 1_000_000 + b"id=1", kind, num_threads=2)


def tokenizes(target: Target, until: float) -> None:
    """Ask for the tokens of long texts."""
    body = json.dumps({"inputs": ["a b c d " * 250_000]}).encode()
    _post_in_threads(target, until, "/tokenize", body, num_threads=2)


def sends_nested_json(target: Target, until: float) -> None:
    """Send JSON that is nested a hundred thousand levels deep."""
    body = b'{"id":1,"texts":["a"],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    _post_in_threads(target, until, "/encode", body)


def sends_large_heads(target: Target, until: float) -> None:
    """Send requests with a header of 50 MB."""
    line = b"X-A: " + b"a" * 60_000 + b"\r\n"
    head = b"GET /live HTTP/1.1\r\nHost: a\r\n"

    def send() -> None:
        with _connect(target) as connection:
            connection.sendall(head)
            for _ in range(800):
                connection.sendall(line)
            connection.sendall(b"\r\n")
            connection.recv(1000)

    _in_threads(until, send, num_threads=2)


def sends_random_bytes(target: Target, until: float) -> None:
    """Open connections, send random bytes, and close them."""
    randomness = random.Random(1)

    def send() -> None:
        with _connect(target) as connection:
            connection.sendall(randomness.randbytes(randomness.randrange(1, 5000)))

    _in_threads(until, send)


def streams_slowly(target: Target, until: float) -> None:
    """Send a stream of texts without line ends, in small pieces."""
    request = b"POST /encode/stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"400\r\n" + b"a" * 1024 + b"\r\n"

    def send() -> None:
        with _connect(target) as connection:
            connection.sendall(request)
            while time.monotonic() < until:
                connection.sendall(piece)

    _in_threads(until, send, num_threads=2)


def _stall(target: Target, until: float, beginning: bytes) -> None:
    """Open many connections and send one more byte on each of them every second; reopen those that were closed."""
    connections: list[socket.socket] = []
    while time.monotonic() < until:
        for _ in range(_NUM_STALLED - len(connections)):
            with suppress(OSError):
                connections.append(_connect(target))
                connections[-1].sendall(beginning)
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))
        connections = [connection for connection in connections if _still_takes(connection, b"a")]
    for connection in connections:
        connection.close()


def _still_takes(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:
        connection.close()
        return False
    return True


def _post_in_threads(
    target: Target,
    until: float,
    path: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    num_threads: int = _NUM_THREADS,
) -> None:
    kind = {"Content-Type": "application/json", **(headers or {})}
    _in_threads(until, lambda: _send(target, "POST", path, body, kind), num_threads)


def _in_threads(until: float, act: Callable[[], object], num_threads: int = _NUM_THREADS) -> None:
    """Repeat an action in several threads. Errors are expected: the server defends itself."""

    def repeat() -> None:
        while time.monotonic() < until:
            with suppress(OSError, HTTPException):
                act()

    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(repeat) for _ in range(num_threads)]:
            future.result()


def _send(
    target: Target, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> None:
    connection = HTTPConnection("127.0.0.1", target.http_port, timeout=_TIMEOUT_S, source_address=_SOURCE)
    with closing(connection):
        connection.request(method, path, body, headers or {})
        connection.getresponse().read()


def _connect(target: Target) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.http_port), _TIMEOUT_S, _SOURCE)


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


ATTACKS = (
    floods_with_requests,
    floods_with_metrics,
    stalls_in_the_head,
    stalls_in_the_body,
    does_not_read,
    leaves,
    sends_gzip_bombs,
    sends_wrong_items,
    sends_many_values,
    sends_odd_ids,
    sends_form_fields,
    tokenizes,
    sends_nested_json,
    sends_large_heads,
    sends_random_bytes,
    streams_slowly,
)
