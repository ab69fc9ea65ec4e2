"""A Ray cluster on this machine with Ray Serve, and applications of bert_serving.ray in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from bert_serving.ray import build_app
from ray import serve

from tests.support.model_servers import ModelServers, Served, model_folders
from tests.support.running_server import free_ports
from tests.support.waiting import HANG_S, wait_until

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine the HTTP proxy answers late. Ray would end it after 5 or 10 s.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(HANG_S),
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(HANG_S),
    # Ray averages what replicas report over this time, and reads it so often. The defaults are 10 s and more.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


@dataclass(frozen=True)
class RayCluster:
    """A running cluster. url: of Ray Serve's HTTP proxy. metrics_url: of Ray's metrics endpoint."""

    url: str
    metrics_url: str

    def serve_run(self, name: str, *given: object, options: Sequence[str] = ()) -> httpx.Client:
        """Start an application with the command `serve run`; return an HTTP client for it when it is ready.

        given: what follows the options: an import path and its arguments, or a config file.
        """
        address = ray.get_runtime_context().gcs_address
        command = [str(Path(sys.executable).parent / "serve"), "run", "--non-blocking", "--address", address]
        run = subprocess.run(
            [*command, *options, *map(str, given)], capture_output=True, text=True, timeout=HANG_S, check=False
        )
        assert run.returncode == 0, run.stderr
        http = self.http(name)
        wait_until(lambda: http.get("/ready").status_code == 200)
        return http

    def http(self, name: str) -> httpx.Client:
        """Return an HTTP client for an application."""
        headers = {"Authorization": "Bearer one"}
        return httpx.Client(base_url=f"{self.url}/{name}", timeout=HANG_S, headers=headers)


@contextmanager
def running_cluster() -> Iterator[RayCluster]:
    """Start Ray and Ray Serve. At the end, stop all their processes and remove their files."""
    port, metrics_port = free_ports(2)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets in it may have paths of at most 107 bytes
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *_python_path()]))
        try:
            ray.init(
                num_cpus=32,  # only counted: the processes share the cores that there are
                include_dashboard=False,
                object_store_memory=200 << 20,
                log_to_driver=False,
                _metrics_export_port=metrics_port,
                _temp_dir=folder,
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield RayCluster(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics")
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


@contextmanager
def applications(cluster: RayCluster, base: Path, demo_model: Path) -> Iterator[ModelServers]:
    """Start an application for each model of ModelServers: with two replicas for the demo model, else one."""
    args: Mapping[str, Mapping[str, Any]] = {
        "prompted": {
            "num_replicas": 2,
            "api_key": "one two",
            "max_message_mb": 1,
            "cors": "https://a.org",
        },
        "sparse": {"pooling_strategy": "SPLADE"},
    }
    folders = model_folders(base, demo_model)
    targets = [
        serve.RunTarget(
            build_app({"cpu": True, "dtype": "float32", "model_dir": folder, **args.get(name, {})}),
            name=name,
            route_prefix=f"/{name}",
        )
        for name, folder in folders.items()
    ]
    serve.run_many(targets)
    with ExitStack() as stack:
        yield ModelServers(
            **{
                name: Served(None, folder, stack.enter_context(cluster.http(name)))
                for name, folder in folders.items()
            }
        )
