"""Exact counts of real requests, and the list of all metrics in docs/metrics.md."""

from __future__ import annotations

import platform
import re
import signal
import socket
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import build_metrics
import httpx
import psutil
import pytest
from bert_serving.client import BertClient
from prometheus_client.parser import text_string_to_metric_families

from tests.support.model_servers import ModelServers, Served
from tests.support.waiting import HANG_S, wait_until


class Scrape:
    """One scrape of a server."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.text = served.http.get("/metrics").text
        samples = [s for family in text_string_to_metric_families(self.text) for s in family.samples]
        self.labels = {s.name.removeprefix("bert_serving_"): s.labels for s in samples}
        self.values = {
            " ".join([s.name.removeprefix("bert_serving_"), *s.labels.values()]): s.value for s in samples
        }

    def __getitem__(self, name: str) -> float:
        """Return the value of a sample: its name without the prefix, and the values of its labels."""
        return self.values.get(name, 0)

    def sum(self, name: str) -> float:
        """Return the sum of the samples with a name, whatever their labels."""
        return sum(value for key, value in self.values.items() if key.split()[0] == name)

    def grown(self, before: Scrape, *prefixes: str) -> dict[str, float]:
        """Return by how much the samples have grown that begin with a prefix, except for those that have not."""
        names = [name for name in self.values if name.startswith(prefixes)]
        return {name: self[name] - before[name] for name in names if self[name] != before[name]}

    def wait_until_grown_by(self, expected: dict[str, float], *prefixes: str) -> None:
        """Wait until a later scrape has grown by exactly this. A gateway may count just after it has responded."""
        wait_until(
            lambda: Scrape(self._served).grown(self, *prefixes) == expected,
            lambda: Scrape(self._served).grown(self, *prefixes),
        )


@pytest.fixture
def served(model_servers: ModelServers) -> Served:
    """A server with two gateways that requires an API key."""
    return model_servers.prompted


def connect(served: Served, sent: str) -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", served.running.http_port))
    caller.sendall(sent.encode())
    return caller


def begun(served: Served, framing: str) -> socket.socket:
    """Return a connection with a request to /embed that waits for its body."""
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nX-Api-Key: one\r\n{framing}\r\nExpect: 100-continue\r\n\r\n"
    caller = connect(served, head)
    assert caller.recv(100).startswith(b"HTTP/1.1 100 ")
    return caller


def test_requests_texts_tokens_and_errors_are_counted_by_route(served: Served) -> None:
    before = Scrape(served)
    for _ in range(3):
        assert served.http.post("/embed", json={"inputs": ["a", "a a"]}).status_code == 200
    lines = b'"a"\n"a a a"\n'
    assert served.http.post("/encode/stream", content=lines).text.count("embedding") == 2
    assert served.http.post("/v1/embeddings", json={"input": 5.5}).status_code == 422
    assert served.http.post("/embed", json={"inputs": "a"}, headers={"Authorization": "no"}).status_code == 401
    assert served.http.post("/no/such/path").status_code == 404
    before.wait_until_grown_by(
        {
            "http_texts_total /embed": 6,
            "http_tokens_total /embed": 3 * (3 + 4),  # with [CLS] and [SEP]
            "http_texts_total /encode/stream": 2,
            "http_tokens_total /encode/stream": 3 + 5,
            "http_errors_total invalid_request /v1/embeddings": 1,
            "http_errors_total unauthorized /embed": 1,
        },
        *(f"http_{name}_total" for name in ("texts", "tokens", "errors", "refusals", "callers_left")),
    )


def test_requests_of_bert_client_are_told_apart_from_those_through_http(served: Served) -> None:
    before = Scrape(served)
    with BertClient(**served.running.ports) as client:
        for _ in range(2):
            client.encode(["a", "a a"])
    assert served.http.post("/embed", json={"inputs": ["a"]}).status_code == 200
    expected = {"requests_total": 3, "zeromq_requests_total": 2, "batch_fill_ratio_count": 3, "batches_total": 3}
    before.wait_until_grown_by(expected, *expected)


def test_what_the_parser_refuses_is_counted_by_status(served: Served) -> None:
    before = Scrape(served)
    for sent in ("nonsense\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n" + "x: y\r\n" * 200 + "\r\n"):
        with connect(served, sent) as caller:
            assert caller.recv(100).startswith(b"HTTP/1.1 4")
    with begun(served, "Transfer-Encoding: chunked") as caller:  # it is counted for its route too
        caller.sendall(b"z\r\n")
        assert caller.recv(100).startswith(b"HTTP/1.1 400 ")
    before.wait_until_grown_by(
        {
            "http_refusals_total 400": 2,
            "http_refusals_total 431": 1,
            "http_requests_total other 400": 1,
            "http_requests_total other 431": 1,
            "http_requests_total /embed 400": 1,
        },
        *("http_refusals_total", "http_requests_total other", "http_requests_total /embed"),
    )


def test_requests_in_flight_connections_and_callers_that_leave_are_counted(served: Served) -> None:
    before = Scrape(served)
    with ExitStack() as stack:
        for _ in range(4):  # their bodies never arrive
            stack.enter_context(begun(served, "Content-Length: 100"))
        wait_until(lambda: Scrape(served).sum("http_requests_in_flight") >= 4)
        assert Scrape(served).sum("http_connections") >= 4
    before.wait_until_grown_by(
        {"http_callers_left_total /embed": 4, "http_requests_total /embed 499": 4},
        *("http_callers_left_total", "http_requests_total /embed", "http_refusals_total"),
    )
    wait_until(lambda: Scrape(served).sum("http_requests_in_flight") <= 1)  # the scrape itself


def test_each_process_shows_its_use_and_each_loop_its_delay(served: Served) -> None:
    scrape = Scrape(served)
    names = ("server", "worker-0", "gateway-0", "gateway-1")
    for metric in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds"):
        shown = {key.split()[1] for key in scrape.values if key.startswith(f"process_{metric} ")}
        assert shown == set(names)
        assert all(scrape[f"process_{metric} {name}"] > 0 for name in names)
    server = psutil.Process(served.running.process.pid)
    assert scrape["process_resident_memory_bytes server"] == pytest.approx(server.memory_info().rss, rel=0.2)
    for gateway in ("gateway-0", "gateway-1"):
        assert scrape[f"http_max_connections {gateway}"] > 0
        assert scrape[f"http_held_capacity_bytes {gateway}"] == 8 << 20
        assert scrape[f"http_event_loop_lag_seconds_count {gateway}"] > 0
    assert scrape["loop_turn_seconds_count"] > 0
    assert scrape["queue_capacity_texts"] == 524288 * 17 // 16
    assert scrape["held_capacity_bytes"] == 2048 << 20


def test_the_versions_and_the_model_are_labels(served: Served) -> None:
    scrape = Scrape(served)
    assert scrape.labels["build_info"] == {
        "version": version("bert-embedding-service"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    (worker,) = served.http.get("/status/server").json()["workers"]
    facts = {name: str(worker[name]) for name in ("fingerprint", "kind", "device", "dimension", "max_seq_len")}
    assert scrape.labels["model_info"] == {
        "worker": "worker-0",
        "model": "prompted",
        "revision": "",
        "dtype": "float32",
        **facts,
    }


def test_counts_outlive_their_processes_and_use_no_more_files(served: Served) -> None:
    assert served.http.post("/embed", json={"inputs": ["a"]}).status_code == 200
    before = Scrape(served)
    metrics_dir = next(Path(served.running.tmp.name).rglob("metrics"))
    num_ready = served.running.log.count("HTTP is ready")
    for gateway in gateways_of(served):
        gateway.send_signal(signal.SIGKILL)
    wait_until(lambda: served.running.log.count("HTTP is ready") == num_ready + 2)
    with httpx.Client(base_url=served.running.url, timeout=HANG_S) as http:
        after = Scrape(Served(served.running, served.folder, http))
    counted = ("http_requests_total", "http_texts_total", "http_request_seconds_count")
    assert all(growth > 0 for growth in after.grown(before, *counted).values())
    assert after.grown(before, "gateway_restarts_total", "worker_restarts_total") == {
        "gateway_restarts_total gateway-0": 1,
        "gateway_restarts_total gateway-1": 1,
    }
    kinds = ("counter", "gauge_livesum", "histogram")
    expected = {f"{kind}_gateway-{i}.db" for kind in kinds for i in range(2)}
    assert {path.name for path in metrics_dir.iterdir()} == expected


def gateways_of(served: Served) -> list[psutil.Process]:
    """Return the gateway processes, which are the children that hold the HTTP port."""
    return [
        child
        for child in psutil.Process(served.running.process.pid).children()
        if served.running.http_port in {c.laddr.port for c in child.net_connections("tcp")}
    ]


def test_the_documentation_lists_exactly_the_metrics_that_are_shown(served: Served) -> None:
    listed = re.findall(r"^\| `\w+` \|.*\|$", build_metrics.PAGE.read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    of_gpus = {line for line in listed if line.split("`")[1] in build_metrics.ONLY_WITH_GPUS}
    assert set(listed) - of_gpus == set(map(str, build_metrics.rows(Scrape(served).text)))
    assert len(of_gpus) == len(build_metrics.ONLY_WITH_GPUS)
    assert all("Only with GPUs" in line for line in of_gpus)
