"""Metrics count the requests of all gateway processes, and a killed gateway process is replaced."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.model_servers import ModelServers, Served
from tests.support.processes import find_program
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S, wait_until

FAMILIES = {
    "requests by route and status": ("bert_serving_http_requests", "bert_serving_http_request_seconds"),
    "requests": ("bert_serving_requests", "bert_serving_open_requests"),
    "texts": ("bert_serving_texts",),
    "tokens": ("bert_serving_tokens",),
    "latency": tuple(f"bert_serving_{stage}_seconds" for stage in ("queue", "tokenize", "compute", "request")),
    "batch size and tokens": ("bert_serving_batch_texts", "bert_serving_batch_tokens"),
    "queue depth and age": ("bert_serving_queue_texts", "bert_serving_queue_age_seconds"),
    "padding waste": ("bert_serving_padding_tokens",),
    "truncations": ("bert_serving_truncated_texts",),
    "worker state": ("bert_serving_worker_state", "bert_serving_workers_ready"),
    "device busy time": ("bert_serving_device_busy_seconds",),
    "errors by code": ("bert_serving_errors",),
    "the broker": ("bert_serving_broker_up",),
}


def read(text: str) -> dict[str, float]:
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def check_metrics(text: str) -> None:
    """Check the text with Prometheus' promtool, which must find nothing wrong."""
    promtool = find_program("promtool", "Debian's package prometheus")
    found = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def gateways_of(served: Served) -> list[psutil.Process]:
    """Return the gateway processes, which are those children of the server that hold the HTTP port."""
    children = psutil.Process(served.running.process.pid).children()
    return [process for process in children if _connections(served, process)]


def _connections(served: Served, process: psutil.Process) -> set[str]:
    """Return the states of the process's connections at the HTTP port; none if the process has ended."""
    with suppress(psutil.NoSuchProcess):
        return {c.status for c in process.net_connections("tcp") if c.laddr.port == served.running.http_port}
    return set()


def new_connections(served: Served) -> httpx.Client:
    """Return an HTTP client that opens a connection for each request. Any gateway process may accept it."""
    limits = httpx.Limits(max_keepalive_connections=0)
    headers = {"Authorization": "Bearer one"}
    return httpx.Client(base_url=served.running.url, headers=headers, limits=limits, timeout=HANG_S)


def test_promtool_finds_nothing_wrong_and_every_family_is_there_from_the_start() -> None:
    with RunningServer("-http_workers", "2") as running:
        running.wait_for("HTTP is ready")
        text = httpx.get(f"{running.url}/metrics", timeout=HANG_S).text
        check_metrics(text)
        families = {family.name for family in text_string_to_metric_families(text)}
        for what, names in FAMILIES.items():
            assert families >= set(names), what
        counted = {key: value for key, value in read(text).items() if key.startswith("bert_serving_http_requests")}
        for path in (
            "/embed",
            "/v1/embeddings",
            "/rerank",
            "/encode",
            "/encode/stream",
            "/v2/embed",
            "/api/embed",
        ):
            assert counted[f"bert_serving_http_requests_total {path} 200"] == 0


def test_promtool_finds_nothing_wrong_after_all_kinds_of_requests(model_servers: ModelServers) -> None:
    for served in (model_servers.prompted, model_servers.classifier):
        for path in ("/embed", "/predict", "/nope", "/rerank"):
            served.http.post(path, json={"inputs": ["a", "b"]})
        check_metrics(served.http.get("/metrics").text)


def test_metrics_count_all_gateway_processes_whichever_process_is_asked(model_servers: ModelServers) -> None:
    num_scrapes = 0

    def scrape() -> dict[str, float]:
        nonlocal num_scrapes
        num_scrapes += 1
        return read(http.get("/metrics").text)

    def grown(after: dict[str, float]) -> dict[str, float]:
        return {name: after[name] - before.get(name, 0) for name in expected}

    expected = {
        "bert_serving_http_requests_total /embed 200": 12,
        "bert_serving_http_requests_total /v1/embeddings 422": 10,
        "bert_serving_http_request_seconds_count /embed": 12,
        "bert_serving_requests_total": 12,
        "bert_serving_texts_total": 24,
        "bert_serving_tokens_total": 12 * (3 + 256),
        "bert_serving_truncated_texts_total": 12,
        "bert_serving_request_seconds_count": 12,
        "bert_serving_queue_seconds_count": 12,
        "te_request_count batch": 12,
        "te_request_success batch": 12,
        "te_embed_count": 24,
        "te_request_duration_count": 12,
        "te_request_input_length_count": 24,
    }
    of_metrics = "bert_serving_http_requests_total /metrics 200"
    with new_connections(model_servers.prompted) as http:
        before = scrape()
        for _ in range(12):
            assert http.post("/embed", json={"inputs": ["a", "word " * 600]}).status_code == 200
        for _ in range(10):
            assert http.post("/v1/embeddings", json={"input": ""}).status_code == 422
        # A gateway counts a request just after it has responded. Until then, the other gateway does not show it.
        wait_until(lambda: grown(scrape()) == expected, lambda: str(grown(scrape())))
        scrapes = [scrape() for _ in range(20)]
        wait_until(lambda: scrape()[of_metrics] == before.get(of_metrics, 0) + num_scrapes - 1)
    for after in scrapes:
        assert grown(after) == expected
        assert after["bert_serving_broker_up"] == after["bert_serving_workers_ready"] == 1
        assert after["bert_serving_worker_state ready worker-0"] == 1
    busy = "bert_serving_device_busy_seconds_total worker-0"
    assert scrapes[-1][busy] > before[busy]
    assert scrapes[-1]["bert_serving_batches_total"] > before["bert_serving_batches_total"]


def test_both_processes_answer_and_a_killed_one_is_replaced_without_a_refusal(model_servers: ModelServers) -> None:
    served = model_servers.prompted
    before, num_ready = gateways_of(served), served.running.log.count("HTTP is ready")
    assert len(before) == 2
    assert all(_answers(served, process) for process in before)
    stop, statuses, refused = threading.Event(), [], []

    def ask(http: httpx.Client) -> None:
        try:
            statuses.append(http.post("/embed", json={"inputs": "a"}).status_code)
        except httpx.ConnectError as exc:
            refused.append(exc)
        except httpx.TransportError:  # the killed process was answering this request
            pass

    def keep_asking() -> None:
        with new_connections(served) as http:
            while not stop.is_set():
                ask(http)

    callers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        before[0].send_signal(signal.SIGKILL)
        wait_until(lambda: served.running.log.count("HTTP is ready") > num_ready, lambda: served.running.log)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert refused == []
    assert set(statuses) == {200}
    now = gateways_of(served)
    assert (len(now), before[0] in now) == (2, False)
    assert all(_answers(served, process) for process in now)


def _answers(served: Served, process: psutil.Process) -> bool:
    """Return whether the process accepts one of many new connections."""
    connections: list[httpx.Client] = []
    try:
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            connections.append(httpx.Client(base_url=served.running.url, timeout=HANG_S))
            connections[-1].get("/live")
            if psutil.CONN_ESTABLISHED in _connections(served, process):
                return True
        return False
    finally:
        for each in connections:
            each.close()


@pytest.mark.parametrize("path", ["/live", "/ready", "/"])
def test_routes_that_show_whether_the_server_runs(model_servers: ModelServers, path: str) -> None:
    reply = httpx.get(model_servers.prompted.running.url + path, timeout=HANG_S)
    expected: dict[str, Any] = {"/ready": {"status": "ready", "workers": {"worker-0": "ready"}}}
    assert (reply.status_code, reply.json()) == (200, expected.get(path, {"status": "live"}))
    assert httpx.head(model_servers.prompted.running.url + "/health", timeout=HANG_S).status_code == 200
    browser = httpx.get(model_servers.prompted.running.url, headers={"Accept": "text/html,*/*"}, timeout=HANG_S)
    assert (browser.status_code, browser.headers["content-type"]) == (200, "text/html; charset=utf-8")
