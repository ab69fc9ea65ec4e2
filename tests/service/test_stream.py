"""POST /encode/stream answers each line, in the order of the lines and in bounded memory."""

from __future__ import annotations

import base64
import json
import select
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.support.model_servers import ModelServers, Served
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S, wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def served(model_servers: ModelServers) -> Served:
    """The server with the smallest model."""
    return model_servers.classifier


def answers(http: httpx.Client, lines: list[bytes], query: str = "") -> list[dict[str, Any]]:
    reply = http.post(f"/encode/stream{query}", content=iter(line + b"\n" for line in lines))
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.text.endswith("\n") or not reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


def encode(http: httpx.Client, texts: list[str], **options: Any) -> list[Any]:
    result: list[Any] = http.post("/encode", json={"id": 1, "texts": texts, "options": options}).json()["result"]
    return result


# -- lines ---------------------------------------------------------------------------------------------


def test_each_line_gets_a_reply_line_in_order_with_its_id(served: Served) -> None:
    lines = [
        b'"hello"',
        b'{"text": "world"}',
        b'{"id": "x", "text": "fox"}',
        b'{"id": null, "text": "the dog"}',
        b"",
    ]
    lines += [
        b'{"id": {"a": [1]}, "text": "a", "other": 5}',
        b'{"id": 123456789012345678901234567890, "text": "b"}',
    ]
    found = answers(served.http, lines)
    assert [each.keys() for each in found] == [{"id", "embedding"}] * 6
    assert [each["id"] for each in found] == [0, 1, "x", None, {"a": [1]}, 123456789012345678901234567890]
    expected = encode(served.http, ["hello", "world", "fox", "the dog", "a", "b"])
    assert np.abs(np.array([each["embedding"] for each in found]) - expected).max() <= 1e-5


def test_lines_in_pieces_of_any_size_are_the_same_lines(served: Served) -> None:
    body = b'{"id": "\xc3\xa9", "text": "hello"}\r\n\n  \n"world"\n"no newline at the end"'
    reference = served.http.post("/encode/stream", content=body).text.splitlines()
    assert [json.loads(line)["id"] for line in reference] == ["é", 3, 4]
    for size in (1, 7):
        pieces = iter(body[i : i + size] for i in range(0, len(body), size))
        found = served.http.post("/encode/stream", content=pieces).text.splitlines()
        assert [json.loads(line)["id"] for line in found] == ["é", 3, 4]
        for line, expected in zip(found, reference, strict=True):
            difference = np.subtract(json.loads(line)["embedding"], json.loads(expected)["embedding"])
            assert np.abs(difference).max() <= 1e-5


def test_an_empty_stream_gets_an_empty_reply(served: Served) -> None:
    assert answers(served.http, []) == answers(served.http, [b"", b"  "]) == []


def test_bad_lines_among_good_ones_have_an_error_in_their_place(served: Served) -> None:
    bad = {
        b"hello": "the line is not JSON: ",
        b"[]": "text has no token",
        b"5": "text must be a string, got int",
        b"{}": "text must be a string, got null",
        b'{"text": ""}': "text is an empty string",
        b'{"text": "\\u0000"}': "text is an empty string",
        b"[99999]": "text: token id 99999 is not in this model's vocabulary of 119: these ids",
    }
    lines = [line for each in bad for line in (b'"good"', each)]
    found = answers(served.http, lines)
    assert [each["id"] for each in found] == list(range(14))
    assert all(each.keys() == {"id", "embedding"} for each in found[::2])
    for each, message in zip(found[1::2], bad.values(), strict=True):
        assert each.keys() == {"id", "error"}
        assert each["error"]["code"] == "invalid_request"
        assert each["error"]["message"].startswith(message)
    assert answers(served.http, [b'{"id": 7, "text": ""}'])[0]["id"] == 7


def test_characters_that_are_no_text_are_left_out_of_a_line(served: Served) -> None:
    clean, dirty = answers(served.http, [b'"a dog"', b'"a\\u0000 d\\ud800og"'])
    assert dirty["dropped_characters"] == 2
    assert np.abs(np.subtract(clean["embedding"], dirty["embedding"])).max() <= 1e-5


def test_options_come_as_query_parameters(served: Served) -> None:
    def vectors(query: str, lines: list[bytes]) -> list[Any]:
        return [each["embedding"] for each in answers(served.http, lines, query)]

    lines = [b'"hello world"', b'"the dog"']
    texts = ["hello world", "the dog"]
    mean = encode(served.http, texts, pooling_strategy=["REDUCE_MEAN", "CLS_TOKEN"], normalize=True)
    found = vectors("?pooling_strategy=REDUCE_MEAN,CLS_TOKEN&normalize=true", lines)
    assert np.abs(np.subtract(found, mean)).max() <= 1e-5
    tokens = vectors("?pooling_strategy=NONE", lines)
    assert [np.shape(of_text) for of_text in tokens] == [(4, 64), (4, 64)]
    assert np.shape(vectors("?dimensions=8", lines)) == (2, 8)
    assert np.shape(vectors("?output_dtype=ubinary", lines)) == (2, 8)
    (text,) = vectors("?encoding_format=base64&output_dtype=float16&dimensions=4", lines[:1])
    exact = encode(served.http, texts[:1], dimensions=4)
    assert np.abs(np.frombuffer(base64.b64decode(text), "<f2") - exact[0]).max() < 1e-2
    cut = answers(served.http, [b'"%s"' % (b"one " * 600), b'"a"'], "?truncate=left")
    assert [each.get("truncated") for each in cut] == [True, None]
    refused = answers(served.http, [b'"%s"' % (b"one " * 600), b'"a"'], "?truncate=error")
    too_long = "text: a text may have at most 510 tokens, not counting special tokens, got 600"
    assert refused[0]["error"]["message"] == too_long
    assert "embedding" in refused[1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?encoding_format=raw", "encoding_format must be float or base64, got 'raw'"),
        (
            "?output_dtype=int4",
            "output_dtype must be float32, float16, int8, uint8, binary or ubinary, got 'int4'",
        ),
        ("?dimensions=0", "dimensions must be a whole number from 1, got 0"),
        ("?dimensions=many", "dimensions must be a whole number from 1, got 'many'"),
        ("?show_tokens=true", "option 'show_tokens' is not available in a stream: use /encode"),
        ("?truncate=up", "truncate must be one of right, left, error, got 'up'"),
    ],
)
def test_bad_options_are_refused_before_the_first_line(served: Served, query: str, message: str) -> None:
    reply = served.http.post(f"/encode/stream{query}", content=b'"a"\n')
    assert (reply.status_code, reply.json()) == (
        400,
        {"description": message, "type": "InvalidRequest", "status": 400},
    )


def test_a_stream_needs_a_key_and_may_be_larger_than_a_message(model_servers: ModelServers) -> None:
    http, url = model_servers.prompted.http, f"{model_servers.prompted.running.url}/encode/stream"
    assert httpx.post(url, content=b'"a"\n', timeout=HANG_S).status_code == 401
    found = answers(http, [b'"%s"' % (b"x" * 10_000)] * 3 + [b"[]" + b" " * 10_000] * 300)
    assert len(found) == 303


def test_a_line_that_is_too_long_ends_the_stream(served: Served) -> None:
    found = answers(served.http, [b'"a"', b'"b"', b'"' + b"x" * (2 * MIB) + b'"', b'"c"'])
    assert [each["id"] for each in found] == [0, 1, 2]
    assert found[2]["error"] == {"code": "invalid_request", "message": "a line must have at most 1048576 bytes"}


# -- long streams --------------------------------------------------------------------------------------


def gateway_of(running: RunningServer) -> psutil.Process:
    processes = psutil.Process(running.process.pid).children()
    return next(p for p in processes if any(c.laddr.port == running.http_port for c in p.net_connections("tcp")))


class RawStream:
    """A caller with a plain socket and a small receive buffer."""

    def __init__(self, running: RunningServer) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self.socket.connect(("127.0.0.1", running.http_port))
        self.socket.sendall(
            b"POST /encode/stream HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n"
        )

    def write(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def write_until_refused(self, data: bytes, limit: int) -> tuple[int, bytes]:
        """Write the data repeatedly, until the server reads nothing for a second or the limit is reached.

        Return how often the data was written, and the unsent rest if the last write was partial.
        """
        chunk = b"%x\r\n%s\r\n" % (len(data), data)
        self.socket.setblocking(False)
        count, rest = 0, memoryview(b"")
        while count * len(data) < limit:
            if not select.select([], [self.socket], [], 1.0)[1]:
                break
            rest = rest or memoryview(chunk)
            sent = self.socket.send(rest)
            rest = rest[sent:]
            count += not rest
        self.socket.setblocking(True)
        return count + bool(rest), bytes(rest)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the response until it ends."""
        reply = HTTPResponse(self.socket)
        reply.begin()
        assert reply.status == 200
        yield from iter(reply.readline, b"")


def test_a_hundred_thousand_lines_take_no_more_memory_than_a_few(served: Served) -> None:
    """Only one line in twenty is valid, so little is computed. Long ids make the stream 50 MB long."""
    filler, count = b"x" * 450, 100_000
    gateway, stream = gateway_of(served.running), RawStream(served.running)

    def write() -> None:
        for i in range(0, count, 500):
            texts = ((j, b'"a"' if j % 20 == 0 else b"[]") for j in range(i, i + 500))
            stream.write(b"".join(b'{"id": "%d %s", "text": %s}\n' % (j, filler, text) for j, text in texts))
        stream.write(b"")

    answers(served.http, [b'"warm"'] * 2000)
    before, most, seen = gateway.memory_info().rss, 0, 0
    writer = threading.Thread(target=write)
    writer.start()
    for line in stream.lines():
        found = json.loads(line)
        assert found["id"].startswith(f"{seen} ")
        assert ("embedding" in found) == (seen % 20 == 0)
        seen += 1
        if seen % 5000 == 0:
            most = max(most, gateway.memory_info().rss)
    writer.join()
    stream.socket.close()
    assert seen == count
    assert most - before < 25 * MIB


def test_the_server_stops_reading_from_a_caller_that_does_not_read(served: Served) -> None:
    gateway = gateway_of(served.running)
    before = gateway.memory_info().rss
    stream = RawStream(served.running)
    line = b'{"id": "%s", "text": 0}\n' % (b"x" * 1000)
    count, rest = stream.write_until_refused(line * 100, 200 * MIB)
    assert 0 < count * len(line) * 100 < 40 * MIB
    assert gateway.memory_info().rss - before < 40 * MIB
    assert served.http.post("/encode/stream", content=b'"others go on"\n').status_code == 200
    writer = threading.Thread(target=stream.socket.sendall, args=(rest + b"0\r\n\r\n",))
    writer.start()
    assert sum(b'"error"' in answer for answer in stream.lines()) == count * 100
    writer.join()
    stream.socket.close()


def test_answers_come_while_lines_are_still_written(served: Served) -> None:
    stream = RawStream(served.running)
    for _ in range(3):
        stream.write(b'"a line"\n')
        seen = b""
        while b'"embedding"' not in seen:
            assert select.select([stream.socket], [], [], HANG_S)[0], "no answer to a line"
            seen += stream.socket.recv(1 << 16)
    stream.socket.close()


def test_a_caller_that_leaves_in_the_middle_harms_no_other_caller(served: Served) -> None:
    for _ in range(3):
        stream = RawStream(served.running)
        stream.write(b'"a line of many"\n' * 600)
        stream.socket.recv(100)
        stream.socket.close()
    reader = RawStream(served.running)
    reader.write(b'"a line"\n')
    reader.socket.shutdown(socket.SHUT_WR)  # this caller stops sending in the middle of the body
    while reader.socket.recv(1 << 16):
        pass
    reader.socket.close()
    wait_until(lambda: served.http.get("/status/server").json()["open_requests"] == 0)
    assert answers(served.http, [b'"still here"'])[0]["id"] == 0
    assert "Traceback" not in served.running.log
    assert "ASGI" not in served.running.log
