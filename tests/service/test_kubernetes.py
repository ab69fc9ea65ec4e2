"""The server in the pods of deploy/kubernetes, and the query that scales them, in a real Prometheus under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from bert_serving.client import BertClient
from bert_serving.server.cli.key_folder import KeyFolder

from tests.support.kubernetes import Pod, container, only, overlay
from tests.support.processes import find_program
from tests.support.running_server import RunningServer, free_ports
from tests.support.sentences import numbered
from tests.support.two_hosts import SERVER_IP, are_permitted
from tests.support.waiting import HANG_S, wait_until

needs_pods = pytest.mark.skipif(not are_permitted(), reason="network namespaces are not permitted here")

# Prints the status of a response, or nothing if there is no connection. Arguments: URL, API key, JSON body.
REQUEST = """
import sys, urllib.error, urllib.request
url, key, body = sys.argv[1:]
headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
try:
    print(urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers)).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    pass
"""

ENCODE = """
import sys
from bert_serving.client import BertClient
with BertClient(sys.argv[1], curve_dir=sys.argv[2]) as client:
    print(client.encode(["hello world"]).shape)
"""


def status(pod: Pod, path: str, *, key: str = "", body: object = None) -> str:
    """Send a request from the other host to the container's port; return the status, "" without a connection."""
    ports = {port["name"]: port["containerPort"] for port in container(overlay("cpu"))["ports"]}
    url = f"http://{SERVER_IP}:{ports['http']}{path}"
    done = pod.run_beside(sys.executable, "-c", REQUEST, url, key, "" if body is None else json.dumps(body))
    return done.stdout.strip()


def probe(pod: Pod, name: str) -> str:
    """Send the request of one of the manifest's probes; return the status."""
    request = container(overlay("cpu"))[name]["httpGet"]
    assert request["port"] == "http"
    return status(pod, request["path"])


def wait_started(pod: Pod) -> None:
    """Wait until the server says that it is ready; check that the startup probe agrees."""

    def says_ready() -> bool:
        assert pod.process.poll() is None, pod.log
        return "all set, ready to serve request!" in pod.log

    wait_until(says_ready, lambda: pod.log)
    assert probe(pod, "startupProbe") == "200"


@needs_pods
def test_the_pod_serves_with_read_only_files_and_stops_when_it_is_told() -> None:
    key = "0123456789abcdef"
    with Pod(overlay("cpu"), secrets={"BERT_SERVING_API_KEY": key}) as pod:
        wait_started(pod)
        assert (probe(pod, "livenessProbe"), probe(pod, "readinessProbe")) == ("200", "200")

        process = Path(f"/proc/{pod.process.pid}")
        root = process / "root"
        assert "CapEff:\t0000000000000000\n" in (process / "status").read_text()
        for folder in ("", "usr", "etc", Path(sys.prefix).relative_to("/")):
            with pytest.raises(OSError, match="Read-only file system"):
                (root / folder / "new").touch()
        assert (root / "models/.compiled").stat().st_mode & 0o777 == 0o700
        assert "Read-only file system" not in pod.log
        assert "Permission denied" not in pod.log

        texts = {"model": "any", "input": ["hello world"]}
        (rule,) = only(overlay("ingress"), "Ingress")["spec"]["rules"]
        bodies = {"/v1/": ("/v1/embeddings", texts), "/encode": ("/encode", {"id": 1, "texts": ["hello world"]})}
        for path in rule["http"]["paths"]:  # what the ingress publishes requires the key
            route, body = bodies[path["path"]]
            assert status(pod, route, body=body) == "401"
            assert status(pod, route, body=body, key=key) == "200"

        pod.process.terminate()
        assert pod.process.wait(HANG_S) == 0, pod.log


def as_secret_volume(files: Path, volume: Path) -> Path:
    """Copy files to a folder as Kubernetes mounts a Secret: each name is a link into a hidden folder."""
    shutil.copytree(files, volume / "..data")
    for file in files.iterdir():
        (volume / file.name).symlink_to(Path("..data") / file.name)
    return volume


@needs_pods
def test_bert_client_reaches_the_pod_of_the_zeromq_overlay(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    KeyFolder(keys).make(["alice"])
    mounted = {"curve": keys, "curve-clients": as_secret_volume(keys / "clients", tmp_path / "volume")}
    with Pod(overlay("zeromq"), mounted=mounted) as pod:
        wait_started(pod)
        done = pod.run_beside(sys.executable, "-c", ENCODE, SERVER_IP, keys / "alice")
        assert done.stdout == "(1, 384)\n", done.stderr + pod.log


def test_a_client_whose_ports_lead_to_two_servers_raises_an_error(tiny: Path) -> None:
    """Why the overlay zeromq has one pod: a Service may connect the two ports with different pods."""
    with (
        RunningServer("-model_dir", tiny, http=False) as one,
        RunningServer("-model_dir", tiny, http=False) as other,
    ):
        one.wait_ready()
        other.wait_ready()
        with pytest.raises((TimeoutError, ConnectionError)):
            BertClient(port=one.port, port_out=other.port_out, timeout=2000)


@contextmanager
def prometheus(folder: Path, job: str, target: str, path: str) -> Iterator[httpx.Client]:
    """Run a real Prometheus that scrapes the target every two seconds; yield a client of its API."""
    (port,) = free_ports(1)
    scraped = {"job_name": job, "metrics_path": path, "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": [scraped]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    program = find_program("prometheus", "Debian's package prometheus")
    flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, *flags, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=HANG_S) as api:
                yield api
        finally:
            process.terminate()
            process.wait(HANG_S)


def test_the_query_of_keda_exceeds_its_threshold_under_load_and_returns_to_0(tmp_path: Path) -> None:
    (trigger,) = only(overlay("keda"), "ScaledObject")["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    query, threshold = trigger["metadata"]["query"], float(trigger["metadata"]["threshold"])
    (endpoint,) = only(overlay("keda"), "ServiceMonitor")["spec"]["endpoints"]
    # Prometheus Operator gives each metric the name of the Service as its job.
    job = only(overlay("keda"), "Service")["metadata"]["name"]

    with RunningServer() as server:
        server.wait_ready()
        with prometheus(tmp_path, job, f"127.0.0.1:{server.http_port}", endpoint["path"]) as api:

            def value() -> float | None:
                """Return what KEDA would read: the only number of the reply, or None if there is none."""
                try:
                    response = api.get("/query", params={"query": query})
                except httpx.TransportError:
                    return None
                if response.status_code == 503:  # it is starting
                    return None
                reply = response.json()
                found = [float(sample["value"][1]) for sample in reply["data"]["result"]]
                assert len(found) <= 1
                return found[0] if found else None

            def log() -> str:
                return f"value={value()} {(tmp_path / 'log').read_text()}"

            wait_until(lambda: value() == 0, log)
            with waiting_requests(server) as callers:

                def exceeds() -> bool:
                    assert not any(caller.done() and caller.exception() for caller in callers)
                    return (value() or 0) > threshold

                wait_until(exceeds, log)
            wait_until(lambda: value() == 0, log)


@contextmanager
def waiting_requests(server: RunningServer) -> Iterator[list[Future[None]]]:
    """Keep more requests open than the server computes in a second; yield the callers.

    They end with the context, or by themselves after 200 requests each.
    """
    are_enough = threading.Event()

    def send(caller: int) -> None:
        for turn in range(200):
            if are_enough.is_set():
                return
            texts = numbered(f"words of caller {caller} in turn {turn}, of no great length", 128)
            httpx.post(
                f"{server.url}/encode", json={"id": turn, "texts": texts}, timeout=HANG_S
            ).raise_for_status()

    with ThreadPoolExecutor(16) as pool:
        callers = [pool.submit(send, caller) for caller in range(16)]
        try:
            yield callers
        finally:
            are_enough.set()
    for caller in callers:
        caller.result()
