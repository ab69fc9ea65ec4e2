"""Callers of HTTP that leave, set deadlines, send too much or hold connections, and what the log says of them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bert_serving.client import BertClient

from tests.support.running_server import RunningServer
from tests.support.sentences import numbered
from tests.support.waiting import HANG_S, wait_until

SECRET = "zanzibar"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def running(tiny: Path) -> Iterator[RunningServer]:
    args = [
        "-model_dir",
        tiny,
        "-http_max_tokenize_chars",
        1000,
        "-http_max_form_fields",
        10,
        "-http_memory_mb",
        64,
    ]
    with RunningServer(*args) as started:
        yield started.wait_ready()


@pytest.fixture(scope="module")
def http(running: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=HANG_S) as client:
        yield client


def send(running: RunningServer, path: str, body: bytes, headers: str = "") -> socket.socket:
    """Return a connection that has sent a request."""
    caller = socket.create_connection(("127.0.0.1", running.http_port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    caller.sendall(head.encode() + body)
    return caller


def status_of(running: RunningServer) -> dict[str, Any]:
    with BertClient(**running.ports, ignore_all_checks=True) as client:
        return client.server_status


# -- leaving and deadlines -----------------------------------------------------------------------------


def test_what_callers_have_left_is_not_computed(running: RunningServer) -> None:
    texts = [f"a sentence of some words with number {i}" for i in range(20_000)]
    body = json.dumps({"id": 1, "texts": texts}).encode()
    before = status_of(running)["statistic"]["num_data_request"]
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(send(running, "/encode", body))
        wait_until(lambda: status_of(running)["statistic"]["num_data_request"] >= before + 2)
    wait_until(lambda: status_of(running)["open_requests"] == 0)
    metrics = httpx.get(f"{running.url}/metrics", timeout=HANG_S).text
    assert "bert_serving_cancelled_requests_total 0.0" not in metrics
    assert '{route="/encode",status="499"}' in metrics


def test_a_stream_that_its_caller_leaves_is_not_computed(running: RunningServer) -> None:
    line = json.dumps("word " * 200).encode() + b"\n"
    caller = send(running, "/encode/stream", line * 2000)
    assert caller.recv(10)
    caller.close()
    wait_until(lambda: status_of(running)["open_requests"] == 0)


@pytest.mark.parametrize(
    ("path", "field", "is_described"),
    [
        ("/encode", "texts", lambda body: body["type"] == "DeadlineExceeded"),
        ("/v1/embeddings", "input", lambda body: body["error"]["code"] == "deadline_exceeded"),
        ("/embed", "inputs", lambda body: "deadline of 1 ms" in body["error"]),
        ("/v2/embed", "texts", lambda body: "deadline of 1 ms" in body["message"]),
        ("/api/embed", "input", lambda body: "deadline of 1 ms" in body["error"]),
    ],
)
def test_a_deadline_that_passes_is_504(http: httpx.Client, path: str, field: str, is_described: Any) -> None:
    body = {"id": 1, field: numbered("some words " * 20, 2000)}
    reply = http.post(path, json=body, headers={"X-Request-Timeout-Ms": "1"})
    assert reply.status_code == 504
    assert is_described(reply.json())


@pytest.mark.parametrize("path", ["/encode", "/embed", "/tokenize", "/decode"])
def test_a_deadline_that_passes_while_the_body_arrives_is_504(running: RunningServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", running.http_port)) as caller:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nX-Request-Timeout-Ms: 100\r\n\r\n"
        caller.sendall(head.encode() + b'{"inputs": ')
        assert caller.recv(1 << 16).startswith(b"HTTP/1.1 504 ")


@pytest.mark.parametrize("path", ["/encode", "/v1/embeddings", "/embed", "/v2/embed", "/api/embed"])
def test_a_deadline_that_is_not_a_number_is_400(http: httpx.Client, path: str) -> None:
    reply = http.post(path, json={}, headers={"X-Request-Timeout-Ms": "soon"})
    assert reply.status_code == 400
    assert "X-Request-Timeout-Ms must be a whole number from 1, got 'soon'" in reply.text


def test_a_deadline_that_does_not_pass_changes_nothing(http: httpx.Client) -> None:
    reply = http.post("/embed", json={"inputs": "a"}, headers={"X-Request-Timeout-Ms": "600000"})
    assert reply.status_code == 200


# -- limits --------------------------------------------------------------------------------------------


def test_idle_connections_do_not_keep_others_out(running: RunningServer, http: httpx.Client) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.http_port)))
        assert httpx.post(f"{running.url}/embed", json={"inputs": "short"}, timeout=HANG_S).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {"inputs": ["a" * 1000]}, "at most 1000 characters in one request, got 1001"),
        ("/tokenize", {"inputs": [""] * 1001}, "at most 1000 characters in one request, got 1001"),
        ("/decode", {"ids": [[1] * 1000]}, "at most 1000 ids in one request, got 1001"),
        ("/embed", {"inputs": [""] * 262_145}, "inputs may have at most 262144 texts, got 262145"),
    ],
)
def test_a_request_with_too_much_in_it_is_413(http: httpx.Client, path: str, body: object, said: str) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 413
    assert said in reply.text


def test_many_tokens_are_described_in_the_order_of_their_texts(http: httpx.Client) -> None:
    found = http.post("/tokenize", json={"inputs": ["a b c d"] * 120 + ["e"], "add_special_tokens": False}).json()
    assert len(found) == 121
    assert [len(tokens) for tokens in found] == [4] * 120 + [1]


def test_a_form_with_too_many_fields_is_400(http: httpx.Client) -> None:
    reply = http.post("/encode", data={"id": "1", "texts": ["a"] * 10})
    assert reply.status_code == 400
    assert "Too many fields" in reply.json()["description"]
    reply = http.post("/encode", data={"id": "1", "texts": ["a" * (1 << 20)]})
    assert reply.status_code == 413


def test_a_gzip_bomb_is_413(http: httpx.Client) -> None:
    import gzip

    bomb = gzip.compress(b'{"inputs": [' + b"0," * 30_000_000 + b"0]}")
    reply = http.post("/embed", content=bomb, headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 413


# -- logs ----------------------------------------------------------------------------------------------


def test_a_request_has_its_names_in_the_logs_of_all_processes(tiny: Path) -> None:
    with RunningServer("-model_dir", tiny, "-verbose") as verbose:
        verbose.wait_ready()
        headers = {"X-Request-Id": "my-request", "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
        reply = httpx.post(f"{verbose.url}/embed", json={"inputs": "a"}, headers=headers, timeout=HANG_S)
        assert reply.headers["x-request-id"] == "my-request"
        verbose.wait_for(f"trace=my-request/{TRACE_ID}")
        assert httpx.post(
            f"{verbose.url}/embed", json={"inputs": "a", "prompt_name": "x"}, headers=headers, timeout=HANG_S
        ).is_error
        wait_until(lambda: {"server", "gateway", "worker-0"} <= _processes_that_name("my-request", verbose.log))
        headers = {"X-Request-Id": "one,two/three"}
        httpx.post(f"{verbose.url}/embed", json={"inputs": "a"}, headers=headers, timeout=HANG_S)
        verbose.wait_for('trace="one,two/three/"')


def _processes_that_name(trace: str, log: str) -> set[str]:
    """Return the processes whose log lines have this trace."""
    return {match[1] for match in re.finditer(rf"^\S+ \S+ \w+ ([\w-]+): .*trace=\S*{trace}", log, re.MULTILINE)}


def test_no_text_of_a_caller_is_logged(running: RunningServer, http: httpx.Client) -> None:
    bodies: list[Any] = [
        {"id": 1, "texts": [SECRET], "options": {"prompt_name": SECRET}},
        {"id": 1, "texts": [SECRET], "options": {SECRET: SECRET}},
        {"id": 1, "texts": [SECRET, 3]},
        {"id": SECRET, "texts": [[SECRET, "a"]], "options": {"pooling_strategy": SECRET}},
        {"id": 1, "texts": [f"{SECRET} " * 10_000], "options": {"truncate": "error"}},
        {"id": 1, "texts": [SECRET], "spans": [[[900, 999]]]},
        {"id": 1, "texts": [SECRET], "encoding_format": SECRET},
        SECRET,
    ]
    for body in bodies:
        assert http.post("/encode", json=body).is_error
        assert http.post("/embed", json=body).is_error
    assert http.post("/embed", json={"inputs": [[SECRET]], "prompt_name": SECRET}).is_error
    assert http.post("/predict", json={"inputs": SECRET, "raw_scores": SECRET}).is_error
    assert http.post("/encode", content=f'{{"{SECRET}'.encode()).is_error
    assert http.post("/encode", data={"id": SECRET, "texts": [SECRET] * 20}).is_error
    assert http.post(f"/{SECRET}", json={}).is_error
    assert http.post(f"/encode/stream?{SECRET}=1", content=SECRET.encode()).is_error
    http.post("/encode/stream", content=json.dumps([SECRET]).encode())
    with socket.create_connection(("127.0.0.1", running.http_port)) as caller:
        caller.sendall(f"{SECRET}\r\n\r\n".encode())
        assert caller.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(f"tcp://127.0.0.1:{running.port}")
        push.send_multipart([SECRET.encode()])
        push.send_multipart([SECRET.encode(), SECRET.encode(), SECRET.encode()])
        running.wait_for("ignored a message that is not a request")
    assert SECRET not in running.log
    assert "Traceback" not in running.log
