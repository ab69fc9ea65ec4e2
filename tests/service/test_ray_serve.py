"""The application for Ray Serve: the routes of every dialect, and what happens to replicas.

Ray is started once. The tests of the dialects have four applications; each other test starts its own.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import yaml
from bert_serving.client import BertClient
from bert_serving.protocol import InvalidRequest
from bert_serving.ray import Embed
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from tests.service.test_dialects import *  # noqa: F403  # these tests, with the fixture `model_servers` of this file
from tests.support.code_blocks import blocks_run_by
from tests.support.kubernetes import serve_config
from tests.support.model_servers import ModelServers
from tests.support.processes import run
from tests.support.ray_cluster import RayCluster, applications, running_cluster
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S, wait_until

#: What docs/ray.md shows: the commands of Ray Serve, and the call of a handle.
COMMANDS, HANDLE = blocks_run_by(__file__)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def model_servers(
    cluster: RayCluster, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServers]:
    with applications(cluster, tmp_path_factory.mktemp("models"), demo_model) as running:
        yield running


@contextmanager
def load(http: httpx.Client, num_callers: int, texts: Callable[[], list[str]]) -> Iterator[Counter[int]]:
    """Send requests from threads until the context ends; yield how many responses have each status."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            statuses[http.post("/embed", json={"inputs": texts()}).status_code] += 1

    with ThreadPoolExecutor(num_callers) as threads:
        calls = [threads.submit(call) for _ in range(num_callers)]
        try:
            yield statuses
        finally:
            stop.set()
            for each in calls:
                each.result()


def workers(http: httpx.Client) -> list[dict[str, Any]]:
    return http.get("/status/server").json()["workers"]


def open_requests(http: httpx.Client) -> int | None:
    """Return None if the replicas are too busy to answer in time."""
    return http.get("/status/server").json().get("open_requests")


def seen_open(http: httpx.Client, threads: ThreadPoolExecutor) -> Future[httpx.Response]:
    """Send a request, and return its future response when a replica has been seen to work on it.

    A fast replica may answer before anybody sees it work: then the next request has twice as many texts.
    """
    num_texts = 2_000
    while True:
        texts = [f"{num_texts} {number} {'word ' * 100}" for number in range(num_texts)]
        response = threads.submit(http.post, "/embed", json={"inputs": texts})
        wait_until(lambda: open_requests(http) == 1 or response.done())  # noqa: B023  # it ends in this round
        if not response.done():
            return response
        assert response.result().status_code == 200, response.result().text
        num_texts *= 2


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_a_replica_that_is_killed_under_load_costs_no_request(model_servers: ModelServers) -> None:
    http = model_servers.prompted.http
    before = {worker["pid"] for worker in workers(http)}
    assert len(before) == 2
    victim = before.pop()
    with load(http, 8, lambda: ["some words", "other words"]) as statuses:
        wait_until(lambda: statuses[200] > 50)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: statuses[200] > 200)
    assert statuses.keys() == {200}
    wait_until(lambda: len(now := {worker["pid"] for worker in workers(http)}) == 2 and victim not in now)


def test_the_commands_of_the_page_start_an_application_that_answers(cluster: RayCluster, tiny: Path) -> None:
    export, (serve_program, verb, *given), curl = COMMANDS.commands
    name, _, value = export[1].partition("=")
    assert os.environ[name] == value, "the cluster has this variable"
    assert [serve_program, verb] == ["serve", "run"]
    shown = [word.replace("/models/my-model", str(tiny)) for word in given]
    cluster.serve_run("shown", *shown, "cpu=true", options=["--name", "shown", "--route-prefix", "/shown"])
    words = [word.replace("http://127.0.0.1:8000", f"{cluster.url}/shown") for word in curl]
    (vector,) = json.loads(run(*words))
    assert len(vector) == 64
    serve.delete("shown", _blocking=False)


def test_replicas_are_added_for_a_load_that_waits_and_removed_after_it(cluster: RayCluster, tiny: Path) -> None:
    model = (f"model_dir={tiny}", "cpu=true", "served_model_name=tiny")
    scaling = ("max_replicas=2", "target_wait_s=0.1", "upscale_delay_s=1", "downscale_delay_s=2")
    given = ("bert_serving.ray:build_app", *model, *scaling)
    http = cluster.serve_run("scaled", *given, options=["--name", "scaled", "--route-prefix", "/scaled"])
    assert len(workers(http)) == 1
    numbers = itertools.count()
    with load(http, 1, lambda: [f"{next(numbers)} {'word ' * 60}" for _ in range(1024)]) as statuses:
        wait_until(lambda: len(workers(http)) == 2)
    assert statuses.keys() == {200}
    wait_until(lambda: len(workers(http)) == 1)
    serve.delete("scaled", _blocking=False)


def test_kuberay_s_application_answers_what_it_has_accepted_before_it_is_deleted(
    cluster: RayCluster, tiny: Path, tmp_path: Path
) -> None:
    config = serve_config()
    (application,) = config["applications"]
    application |= {"name": "deleted", "route_prefix": "/deleted"}
    application["args"] |= {"model_dir": str(tiny), "served_model_name": "tiny", "drain_timeout": HANG_S}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    http = cluster.serve_run("deleted", path)
    assert http.get("/info").json()["model_id"] == "tiny"
    with ThreadPoolExecutor() as threads:
        response = seen_open(http, threads)
        serve.delete("deleted")
        assert response.result().status_code == 200, response.result().text


def test_a_caller_that_leaves_takes_its_texts_out_of_the_queue(model_servers: ModelServers) -> None:
    http = model_servers.classifier.http

    def counts() -> tuple[float, float]:
        found = samples(http.get("/metrics").text)
        left = {labels["route"]: count for labels, count in found["bert_serving_http_callers_left_total"]}
        ((_, cancelled),) = found["bert_serving_cancelled_requests_total"]
        return left["/embed"], cancelled

    left, cancelled = counts()
    body = json.dumps({"inputs": [f"{number} {'word ' * 100}" for number in range(10_000)]})
    caller = HTTPConnection(http.base_url.host, http.base_url.port)
    caller.request("POST", http.base_url.path + "embed", body, {"Authorization": "Bearer one"})
    wait_until(lambda: open_requests(http) == 1)
    caller.close()
    wait_until(lambda: counts() == (left + 1, cancelled + 1))
    wait_until(lambda: http.get("/status/server").json().get("queue_texts") == 0)


def test_a_deadline_that_passes_ends_a_request(model_servers: ModelServers) -> None:
    texts = [f"{number} {'word ' * 100}" for number in range(2_000)]
    headers = {"X-Request-Timeout-Ms": "100"}
    response = model_servers.classifier.http.post("/embed", json={"inputs": texts}, headers=headers)
    assert response.status_code == 504


def test_metrics_are_on_the_route_and_on_rays_endpoint_under_the_same_names(
    cluster: RayCluster, model_servers: ModelServers
) -> None:
    http = model_servers.prompted.http
    assert http.post("/embed", json={"inputs": ["a", "b"]}).status_code == 200
    route = samples(http.get("/metrics").text)
    assert route["bert_serving_broker_up"] == [({}, 1)]
    expected = {labels["replica"]: count for labels, count in route["bert_serving_texts_total"]}
    assert expected.keys() == {worker["name"] for worker in workers(http)}

    def rays() -> dict[str, list[tuple[dict[str, str], float]]]:
        return samples(httpx.get(cluster.metrics_url, timeout=HANG_S).text)

    def by_replica(name: str) -> dict[str, float]:
        of_app = [(labels, value) for labels, value in rays().get(name, []) if labels["application"] == "prompted"]
        return {labels["replica"]: value for labels, value in of_app}

    wait_until(lambda: by_replica("ray_bert_serving_texts_total").items() >= expected.items())
    wait_until(lambda: {f"ray_{name}" for name in route} <= rays().keys())


def test_embed_gets_vectors_from_a_server(server: RunningServer, client: BertClient) -> None:
    address = f"127.0.0.1:{server.ports['port']}:{server.ports['port_out']}"
    table = Embed(server=address)(pa.table({"text": ["hello world", None]}))
    assert table["vector"].to_pylist() == [client.encode(["hello world"])[0].tolist(), None]


def test_a_handle_gives_vectors_and_errors_of_their_own_types(
    cluster: RayCluster, model_servers: ModelServers
) -> None:
    names: dict[str, Any] = {"serve": serve}
    code = compile(HANDLE.code.replace('"vectors"', '"prompted"'), "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    asyncio.run(eval(code, names))
    engine, vectors = names["engine"], names["vectors"]
    assert (vectors.shape, vectors.dtype) == ((1, 384), "float32")
    with pytest.raises(InvalidRequest, match="pooling_layer"):
        engine.encode.remote(["a"], pooling_layer=99).result()
