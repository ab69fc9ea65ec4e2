"""Dashboards, rules and the compose profile in deploy/: a real Prometheus evaluates every query of them."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from bert_serving.client import BertClient

from tests.support.code_blocks import ROOT, blocks_run_by
from tests.support.processes import find_program, run
from tests.support.running_server import RunningServer, free_ports
from tests.support.waiting import HANG_S, wait_until

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
PANELS = [
    pytest.param(target["expr"], id=f"{path.stem}: {panel['title']}, {target['legendFormat'] or 'value'}")
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
    for panel in json.loads(path.read_text())["panels"]
    for target in panel.get("targets", ())
]
SHOWN = [
    pytest.param(line, id=f"{block}: {line[:40]}")
    for block in blocks_run_by(__file__)
    for line in block.code.splitlines()
    if not line.startswith("#")
]
ALL_RULES = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

_COMPARISON = re.compile(r" (==|>) [\d.]+$")
_PAUSE_S = 0.05  # between two requests of the load, so that Prometheus gets its share of the cores


def promtool(*args: object) -> str:
    return run(find_program("promtool", "Debian's package prometheus"), *args)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=HANG_S)

    def get(self, path: str, **params: str) -> Any:
        """Return the data of a reply. Raises AssertionError if it is an error."""
        reply = self._http.get(f"/api/v1/{path}", params=params).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def numbers(self, expr: str) -> list[float]:
        """Return the value of each series of an expression."""
        return [float(series["value"][1]) for series in self.get("query", query=expr)["result"]]

    def wait_for_numbers(self, expr: str) -> list[float]:
        """Return the value of each series when one is a finite number: rate() needs several scrapes."""
        wait_until(lambda: any(map(math.isfinite, self.numbers(expr))), lambda: f"{expr}: {self.numbers(expr)}")
        return self.numbers(expr)

    def is_up(self) -> bool:
        """Whether it answers, and has got metrics from the server."""
        try:
            is_ready = self._http.get("/-/ready").status_code == 200  # 503 while it starts
        except httpx.TransportError:
            return False
        return is_ready and self.numbers("up") == [1.0]

    def rules(self) -> list[Mapping[str, Any]]:
        """Return the state of each rule."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def prometheus(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our rules that looks at a server under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.http_port}"]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [
            find_program("prometheus", "Debian's package prometheus"),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        running = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(running.is_up)
        with under_load(server):
            wait_until(lambda: all(rule["lastEvaluation"][:4] != "0001" for rule in running.rules()))
            yield running
    finally:
        process.kill()
        process.wait()


@contextmanager
def under_load(server: RunningServer) -> Iterator[None]:
    """Send requests of each kind: through HTTP, with BertClient, and such that are refused."""
    ended = threading.Event()

    def http(path: str, body: Mapping[str, object]) -> None:
        with httpx.Client(base_url=server.url, timeout=HANG_S) as caller:
            while not ended.wait(_PAUSE_S):
                caller.post(path, json=body)

    def zeromq() -> None:
        with BertClient(**server.ports) as client:
            while not ended.wait(_PAUSE_S):
                client.encode(["a text", "another one"] * 20)

    with ThreadPoolExecutor() as threads:
        works = [
            threads.submit(http, "/v1/embeddings", {"input": ["a text", "word " * 600]}),
            threads.submit(http, "/embed", {"inputs": "a text"}),
            threads.submit(http, "/v2/embed", {"texts": 5}),
            threads.submit(zeromq),
        ]
        try:
            yield
        finally:
            ended.set()
        for work in works:
            work.result(HANG_S)


@pytest.mark.parametrize("expr", PANELS)
def test_each_query_of_the_dashboards_returns_numbers(expr: str, prometheus: Prometheus) -> None:
    for variable, value in {"$__rate_interval": "1m", "$job": "bert-serving", "$instance": ".*"}.items():
        expr = expr.replace(variable, value)
    assert prometheus.wait_for_numbers(expr)


@pytest.mark.parametrize("expr", SHOWN)
def test_each_query_of_the_page_returns_numbers(expr: str, prometheus: Prometheus) -> None:
    prometheus.numbers(expr)
    assert prometheus.wait_for_numbers(_COMPARISON.sub("", expr))


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_compares_numbers_that_exist(alert: str, prometheus: Prometheus) -> None:
    expr = ALERTS[alert]["expr"]
    compared, num_comparisons = _COMPARISON.subn("", expr)
    assert num_comparisons == 1
    wait_until(lambda: (found := prometheus.numbers(compared)) and all(map(math.isfinite, found)))
    prometheus.numbers(expr)


def test_prometheus_evaluates_all_rules_without_an_error(prometheus: Prometheus) -> None:
    assert {rule["name"]: rule["health"] for rule in prometheus.rules()} == {
        rule.get("alert") or rule["record"]: "ok" for rule in ALL_RULES
    }
    for rule in ALL_RULES:
        if "record" in rule:
            assert prometheus.wait_for_numbers(rule["record"])


@pytest.mark.parametrize("dialect", ["OpenAI", "Text Embeddings Inference", "Cohere", "operations"])
def test_requests_are_counted_by_dialect(dialect: str, prometheus: Prometheus) -> None:
    assert prometheus.wait_for_numbers(f'dialect:bert_serving_http_requests:rate5m{{dialect="{dialect}"}} > 0')


def test_errors_are_counted_by_dialect(prometheus: Prometheus) -> None:
    assert prometheus.wait_for_numbers('dialect_code:bert_serving_http_errors:rate5m{dialect="Cohere"} > 0')


def test_errors_that_only_a_gateway_has_seen_are_in_a_ratio(prometheus: Prometheus, server: RunningServer) -> None:
    ratio = "instance:bert_serving_http_errors:ratio_rate5m > 0"
    errors = "sum(bert_serving_errors_total)"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nX-Request-Timeout-Ms: 1\r\n\r\n"

    def is_seen_after_one_more() -> bool:
        with socket.create_connection(("127.0.0.1", server.http_port)) as caller:  # the body never arrives
            caller.sendall(head)
            assert caller.recv(100).startswith(b"HTTP/1.1 504 ")
        return bool(prometheus.numbers(ratio))

    before = prometheus.numbers(errors)
    wait_until(is_seen_after_one_more, lambda: prometheus.get("query", query=ratio))
    assert prometheus.numbers(errors) == before


def test_the_probes_that_are_no_errors_are_routes(prometheus: Prometheus, server: RunningServer) -> None:
    (rule,) = [
        rule for rule in ALL_RULES if rule.get("record") == "instance:bert_serving_http_errors:ratio_rate5m"
    ]
    (probes,) = set(re.findall(r'route!~"([^"]+)"', rule["expr"]))
    *paths, of_page = probes.split("|")
    assert of_page == "/page/.*"
    assert {httpx.get(server.url + path).status_code for path in [*paths, "/page/app.mjs"]} == {200}
    for path in paths:
        assert prometheus.wait_for_numbers(f'bert_serving_http_requests_total{{route="{path}"}} > 0')


def test_promtool_finds_nothing_wrong_with_rules_and_configuration() -> None:
    promtool("check", "rules", "--lint-fatal", RULES)
    promtool("check", "config", "--lint-fatal", DEPLOY / "prometheus/prometheus.yaml")
    promtool("test", "rules", DEPLOY / "prometheus/rules.test.yaml")


def test_each_alert_is_tested_with_promtool() -> None:
    (trouble, *_) = yaml.safe_load((DEPLOY / "prometheus/rules.test.yaml").read_text())["tests"]
    fires = {test["alertname"] for test in trouble["alert_rule_test"] if test.get("exp_alerts")}
    is_quiet = {test["alertname"] for test in trouble["alert_rule_test"] if not test.get("exp_alerts")}
    assert fires == is_quiet == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_an_entry_in_the_runbook(alert: str) -> None:
    annotations = ALERTS[alert]["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    assert annotations["runbook_url"] == f"docs/runbook.md#{alert.lower()}"
    entry = (ROOT / "docs/runbook.md").read_text().partition(f"\n## {alert}\n")[2].partition("\n## ")[0]
    for part in ("**What it means.**", "**What to look at.**", "**What to do.**", "```sh"):
        assert part in entry


def test_the_dashboards_are_current() -> None:
    run(sys.executable, DEPLOY / "grafana/build_dashboards.py", "--check")


def test_the_compose_profile_starts_pinned_images_with_files_that_exist() -> None:
    services = {
        name: service for name, service in COMPOSE.items() if "observability" in service.get("profiles", ())
    }
    assert set(services) == {"prometheus", "grafana", "otel-collector"}
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            assert (ROOT / volume.split(":")[0]).is_dir()
    assert "profiles" not in COMPOSE["embedding"]


def test_the_services_of_the_profile_find_each_other() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["embedding:8125"]
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = read("grafana/provisioning/dashboards/bert-serving.yaml")["providers"]
    folders = [volume.split(":")[1] for volume in COMPOSE["grafana"]["volumes"]]
    assert provider["options"]["path"] in folders
    assert "/etc/grafana/provisioning" in folders


def test_the_collector_takes_traces_by_http_and_writes_them_to_its_log() -> None:
    config = read("otel/collector.yaml")
    assert config["receivers"]["otlp"]["protocols"] == {"http": {"endpoint": "0.0.0.0:4318"}}
    (pipeline,) = config["service"]["pipelines"].values()
    assert pipeline == {"receivers": ["otlp"], "processors": ["batch"], "exporters": ["debug"]}
    assert all(name in config[kind] for kind, names in pipeline.items() for name in names)
    assert COMPOSE["otel-collector"]["command"] == ["--config=/etc/otel/collector.yaml"]


def test_the_command_of_the_compose_profile_sends_traces_to_the_collector() -> None:
    assert COMPOSE["embedding"]["environment"]["BERT_SERVING_OTEL_ENDPOINT"] == "${OTEL_ENDPOINT:-}"
    command = "OTEL_ENDPOINT=http://otel-collector:4318 docker compose --profile observability up\n"
    assert command in (DEPLOY / "grafana/README.md").read_text()
    assert re.search(r'"\.\[[a-z,]*\botel\b[a-z,]*\]"', (ROOT / "Dockerfile").read_text())


def read(path: str | Path) -> Any:
    """Return the content of a YAML file in deploy/."""
    return yaml.safe_load((DEPLOY / path).read_text())
