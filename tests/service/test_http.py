"""The HTTP gateway and its route /encode."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from bert_serving.client import BertClient
from bert_serving.protocol import PayloadTooLarge
from bert_serving.server.supervisor.listeners import listen
from prometheus_client.parser import text_string_to_metric_families

from tests.support.running_server import RunningServer, free_ports
from tests.support.waiting import HANG_S, wait_until


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


def test_encode_returns_id_result_and_status(http: httpx.Client, client: BertClient) -> None:
    reply = http.post("/encode", json={"id": 123, "texts": ["hello world", "good day"], "is_tokenized": False})
    assert reply.status_code == 200
    body = reply.json()
    assert body.keys() == {"id", "result", "status"}
    assert (body["id"], body["status"]) == (123, 200)
    assert np.abs(np.array(body["result"]) - client.encode(["hello world", "good day"])).max() < 0.01


def test_texts_that_were_cut_are_listed(http: httpx.Client) -> None:
    body = http.post("/encode", json={"id": 1, "texts": ["short", "word " * 500]}).json()
    assert (body["truncated"], len(body["result"])) == ([1], 2)


def test_a_form_is_as_good_as_json(http: httpx.Client, client: BertClient) -> None:
    reply = http.post("/encode", data={"id": "7", "texts": ["hello world", "good day & night"]})
    assert (reply.status_code, reply.json()["id"]) == (200, "7")
    expected = client.encode(["hello world", "good day & night"])
    assert np.abs(np.array(reply.json()["result"]) - expected).max() < 0.01
    assert http.post("/encode", data={"id": "7"}).json()["type"] == "InvalidRequest"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # curl -d sends this header
    assert http.post("/encode", content=b'{"id": 8, "texts": ["x"]}', headers=headers).json()["id"] == 8


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("https://localhost", True),
        ("https://example.org", False),
        ("https://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("null", False),
    ],
)
def test_only_pages_of_web_servers_on_the_same_machine_may_call(
    http: httpx.Client, origin: str, is_allowed: bool
) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked = {**headers, "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = http.options("/encode", headers=asked)
    assert preflight.status_code == (200 if is_allowed else 400)
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    expected = origin if is_allowed else None
    for reply in (preflight, http.get("/live", headers=headers)):
        assert reply.headers.get("access-control-allow-origin") == expected


@pytest.mark.parametrize("identifier", [0, "text", None, [1, 2], {"a": None}, 1.5, True])
def test_the_id_comes_back_whatever_it_is(http: httpx.Client, identifier: object) -> None:
    assert http.post("/encode", json={"id": identifier, "texts": ["x"]}).json()["id"] == identifier


@pytest.mark.parametrize(
    "identifier",
    [
        "18446744073709551616",
        "-123456789012345678901234567890",
        "1e400",
        "-1E+400",
        "0.1000000000000000055511151231257827",
        '{"a":[18446744073709551616,1e400,-9223372036854775809],"b":null}',
        "9" * 4000,
    ],
)
def test_numbers_in_the_id_come_back_digit_by_digit(http: httpx.Client, identifier: str) -> None:
    reply = http.post("/encode", content=f'{{"id": {identifier}, "texts": ["x"]}}'.encode())
    assert reply.status_code == 200
    assert reply.text.startswith(f'{{"id":{identifier},"result":[[')


def test_tokenized_texts(http: httpx.Client, client: BertClient) -> None:
    body = {"id": 1, "texts": [["hello", "world"]], "is_tokenized": True}
    reply = http.post("/encode", json=body)
    assert np.abs(np.array(reply.json()["result"]) - client.encode(["hello world"])).max() < 0.01


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not json", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"texts": ["x"]}', 'no "id"'),
        (b'{"id": 1}', 'no "texts"'),
        (b'{"id": 1, "texts": "x"}', "must be a list of strings, got str"),
        (b'{"id": 1, "texts": []}', "must not be empty"),
        (b'{"id": 1, "texts": ["x", ""]}', "texts[1] is an empty string"),
        (b'{"id": 1, "texts": ["x", 3]}', "texts[1] must be a string, got int"),
        (b'{"id": 1, "texts": [null]}', "texts[0] must be a string, got null"),
        (b'{"id": 1, "texts": ["x", ["y"]]}', "texts[1] must be a string, got list"),
        (b'{"id": 1, "texts": ["a", "\\ud800"]}', "texts[1] is an empty string"),
        (b'{"id": 1, "texts": ["x"], "is_tokenized": true}', "must be lists of tokens"),
        (b'{"id": "\\ud800", "texts": ["x"]}', "id cannot be returned"),
        (b'{"id": NaN, "texts": ["x"]}', "the body is not JSON"),
        (b'{"id": [-Infinity], "texts": ["x"]}', "the body is not JSON"),
        (
            b'{"id": ' + b"[" * 400 + b"]" * 400 + b', "texts": ["x"]}',
            "it has more than 200 levels of lists and objects",
        ),
        (
            b'{"id": ' + b"[" * 999 + b"]" * 999 + b', "texts": ["x"]}',
            "it has more than 200 levels of lists and objects",
        ),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_bad_bodies_are_400_with_a_reason(http: httpx.Client, content: bytes, said: str) -> None:
    reply = http.post("/encode", content=content)
    assert reply.status_code == 400
    body = reply.json()
    assert body.keys() == {"description", "type", "status"}
    assert said in body["description"]
    assert body["status"] == 400


def test_a_list_too_long_is_413(http: httpx.Client) -> None:
    reply = http.post("/encode", json={"id": 1, "texts": ["x"] * 262_145})
    assert reply.status_code == 413
    assert "at most 262144 texts, got 262145" in reply.json()["description"]


def test_other_methods_and_paths_are_json_errors(http: httpx.Client) -> None:
    assert http.get("/encode").json() == {
        "description": "Method Not Allowed",
        "type": "HTTPException",
        "status": 405,
    }
    assert http.get("/no/such/path").json()["status"] == 404


@pytest.mark.parametrize(
    "path", ["/live", "/ready", "/metrics", "/", "/health", "/v1/models", "/docs", "/openapi.json"]
)
def test_head_has_the_status_of_get_and_no_body(http: httpx.Client, path: str) -> None:
    reply = http.head(path)
    assert (reply.status_code, reply.content) == (200, b"")


def test_callers_learn_how_long_a_connection_stays_open(http: httpx.Client) -> None:
    assert http.get("/live").headers["keep-alive"] == "timeout=74"  # a second less than the default of 75 s


def test_a_body_too_large_is_413_with_or_without_content_length() -> None:
    with RunningServer("-max_message_mb", "1") as running:
        running.wait_ready()
        body = json.dumps({"id": 1, "texts": ["x" * (1 << 20)]}).encode()
        announced = httpx.post(f"{running.url}/encode", content=body, timeout=HANG_S)
        chunked = httpx.post(f"{running.url}/encode", content=iter([body[:1000], body[1000:]]), timeout=HANG_S)
        for reply in (announced, chunked):
            assert reply.status_code == 413
            assert reply.json()["description"] == "the body must have at most 1048576 bytes"
        counted = [
            line
            for line in httpx.get(f"{running.url}/metrics", timeout=HANG_S).text.splitlines()
            if '"413"' in line
        ]
        assert counted == ['bert_serving_http_requests_total{route="/encode",status="413"} 2.0']
        with BertClient(**running.ports) as client:
            with pytest.raises(PayloadTooLarge, match=r"at most 1048576 bytes .*, got 1048580"):
                client.encode(["x" * (1 << 20)])
            assert client.encode(["x"]).shape == (1, 384)


def test_status_of_server_and_client(http: httpx.Client) -> None:
    server_status = http.get("/status/server").json()
    assert (server_status["status"], server_status["server_version"]) == (200, "1.10.0")
    assert server_status["statistic"]["num_data_request"] >= 0
    client_status = http.get("/status/client").json()
    assert client_status["num_request"] > 0
    # Whoever knows the gateway's identity could receive all replies, so no route tells it, nor a request's id.
    assert (client_status["identity"], client_status["pending_request"], server_status["client"]) == ([], [], "")


def test_live_ready_and_docs(http: httpx.Client) -> None:
    assert http.get("/live").json() == {"status": "live"}
    assert http.get("/ready").json() == {"status": "ready", "workers": {"worker-0": "ready"}}
    assert "swagger" in http.get("/docs").text.lower()
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/encode", "/status/server", "/status/client", "/live", "/ready", "/metrics"} <= paths.keys()


def test_metrics_count_what_was_done(http: httpx.Client) -> None:
    def read() -> dict[str, float]:
        reply = http.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        samples = [s for family in text_string_to_metric_families(reply.text) for s in family.samples]
        return {s.name + "".join(s.labels.values()): s.value for s in samples}

    before = read()
    http.post("/encode", json={"id": 1, "texts": ["hello world", "word " * 500]})
    http.post("/encode", json={"id": 1, "texts": []})
    after = read()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["bert_serving_texts_total"] == 2
    assert grown["bert_serving_tokens_total"] == 4 + 256
    assert grown["bert_serving_truncated_texts_total"] == 1
    assert grown["bert_serving_requests_total"] == 1
    assert grown["bert_serving_request_seconds_count"] == 1
    assert grown["bert_serving_http_requests_total/encode200"] == 1
    assert grown["bert_serving_http_requests_total/encode400"] == 1
    assert after["bert_serving_broker_up"] == after["bert_serving_workers_ready"] == 1


def test_many_posts_at_once_merge(server: RunningServer, http: httpx.Client, client: BertClient) -> None:
    def post(number: int) -> httpx.Response:
        return http.post("/encode", json={"id": number, "texts": [f"text {number}"]})

    before = client.server_status["num_batch"]
    with ThreadPoolExecutor(16) as pool:
        with server.paused_workers():
            posts = [pool.submit(post, number) for number in range(16)]
            wait_until(lambda: client.server_status["open_requests"] == 16)
        assert [each.result().json()["id"] for each in posts] == list(range(16))
    assert client.server_status["num_batch"] - before <= 3  # two that were sent at once, and that of all others


def test_before_the_models_are_loaded_it_is_live_but_not_ready() -> None:
    with RunningServer() as running:
        running.wait_for("HTTP is ready")
        assert httpx.get(f"{running.url}/live", timeout=HANG_S).status_code == 200
        reply = httpx.get(f"{running.url}/ready", timeout=HANG_S)
        if "all set" not in running.log:
            assert reply.status_code == 503
            assert reply.json()["workers"] == {"worker-0": "starting"}
        # A request that arrives before the model is loaded waits for the model.
        body = {"id": 1, "texts": ["early"]}
        assert httpx.post(f"{running.url}/encode", json=body, timeout=HANG_S).status_code == 200
        running.wait_ready()


def test_a_dead_gateway_is_replaced_and_its_port_never_refuses() -> None:
    with RunningServer() as running:
        running.wait_ready()
        gateway = next(
            p for p in running.family if any(c.laddr.port == running.http_port for c in p.net_connections("tcp"))
        )
        gateway.send_signal(signal.SIGKILL)
        psutil.wait_procs([gateway], timeout=HANG_S)
        assert httpx.get(f"{running.url}/ready", timeout=HANG_S).status_code == 200
        running.signal(signal.SIGTERM)
        assert running.wait_end() == 0


def test_small_answers_are_not_held_back_for_larger_ones() -> None:
    """Nagle's algorithm together with delayed acknowledgements would delay each response by 40 ms."""

    async def has_no_delay() -> int:
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        with listen("127.0.0.1", *free_ports(1)) as listener:
            server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), sock=listener)
            async with server:
                _, caller = await asyncio.open_connection(*listener.getsockname())
                writer = await accepted.get()
                found: int = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for each in (caller, writer):
                    each.close()
                return found

    assert asyncio.run(has_no_delay()) == 1
