"""Creates the parts of one server, and the arguments of its child processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import socket
from typing import TypeVar

from ..broker.broker import Broker
from ..broker.curve import CurveError
from ..broker.metrics import BrokerMetrics
from ..broker.observer import JobTracer
from ..broker.ports import PortInUse, PrivateEndpoints
from ..broker.tei_metrics import TeiMetrics
from ..keys import KeyFileError, KeySource, unnamed_keys
from ..settings import Settings
from ..tls import CertificateSource, TlsError
from .listeners import open_listeners
from .process import GatewayProgram, Program
from .startup import StartError, max_seq_len_in_force, worker_spec
from .tracing import tracing_of

_GATEWAY_MESSAGES = 8  # how many times -max_message_mb a gateway may hold, if -http_memory_mb is not set
# If another program keeps a core busy, the thread that spins takes the time of the thread that it waits for.
# libgomp's default is 300,000 rounds. `python -m benchmarks.spinning` compares both.
_SPIN_COUNT = 10_000
# For each number of tokens in a batch, oneDNN and PyTorch keep what they have prepared. With their default of 1024
# entries each, a worker grew from 1.2 to 2.0 GB in half an hour of mixed requests (benchmarks/results/soak.json).
_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "128"}
_MAX_FOLDER_PATH = 98  # the system allows 107 bytes for the path of a socket, such as FOLDER/requests


_P = TypeVar("_P", bound=Program)


class Launch:
    """The parts of one server: its folder, its ports, its broker, and the programs of its child processes.

    settings, token_rows: as in Supervisor. api_keys: the keys that new gateways accept. certificate: what new
    gateways use for TLS; None: no TLS. metrics: those of the server process. If a port is in use, or a key or
    certificate cannot be read, the constructor removes what it has created and raises StartError.
    """

    def __init__(self, settings: Settings, *, token_rows: int | None) -> None:
        self._settings = settings
        self.metrics = BrokerMetrics(self._worker_names, self._gateway_names)
        with ExitStack() as resources:
            self._folder = _make_private_folder()
            resources.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._endpoints = PrivateEndpoints.in_folder(self._folder)
            try:
                self._tracing = tracing_of(settings)
                tracer = self._make_tracer(resources)
                self.broker = self._make_broker(token_rows, tracer)
                resources.callback(self.broker.close)
                self.workers = {name: self._make_worker(i, name) for i, name in enumerate(self._worker_names)}
                self.api_keys = _key_source(settings)
                self.certificate = _certificate_source(settings)
                self.gateways = self._make_gateways(resources)
            except (PortInUse, CurveError, KeyFileError, TlsError) as exc:
                raise StartError(str(exc)) from exc
            self._resources = resources.pop_all()

    def close(self) -> None:
        """Close the ports and remove the folder. The child processes must have ended."""
        self._resources.close()

    @property
    def _worker_names(self) -> list[str]:
        assert self._settings.num_worker is not None
        return [f"worker-{i}" for i in range(self._settings.num_worker)]

    @property
    def _gateway_names(self) -> list[str]:
        if not self._settings.serves_http:
            return []
        count = self._settings.http_workers
        return ["gateway"] if count == 1 else [f"gateway-{i}" for i in range(count)]

    def _make_tracer(self, resources: ExitStack) -> JobTracer | None:
        if self._tracing is None:
            return None
        tracer = self._tracing.job_tracer(self.metrics.lost_spans)
        resources.callback(tracer.close)
        return tracer

    def _make_broker(self, token_rows: int | None, tracer: JobTracer | None) -> Broker:
        settings = self._settings
        assert settings.model_dir is not None
        return Broker(
            settings,
            endpoints=self._endpoints,
            worker_names=self._worker_names,
            max_seq_len=max_seq_len_in_force(settings),
            metrics=self.metrics,
            token_rows=token_rows,
            observers=[TeiMetrics(self.metrics)],
            tracer=tracer,
        )

    def _make_worker(self, index: int, name: str) -> Program:
        settings = self._settings
        kwargs = {
            "name": name,
            "endpoint": self._endpoints.workers,
            "num_sharing_cpu": settings.num_worker,
            "float16": settings.fp16,
            "tokenizer_dir": str(self._folder) if settings.serves_http else None,
            "spec": worker_spec(settings, index),
        }
        return self._program(
            Program, name, "bert_serving.server.worker.start:main", kwargs, env=worker_env(os.environ)
        )

    def _make_gateways(self, resources: ExitStack) -> list[GatewayProgram]:
        """Return the gateways, which all accept connections from the same listening sockets."""
        if not self._settings.serves_http:
            return []
        listeners = open_listeners(self._settings, resources)
        metrics_dir = self._folder / "metrics"
        metrics_dir.mkdir()
        return [self._make_gateway(name, listeners, metrics_dir) for name in self._gateway_names]

    def _make_gateway(self, name: str, listeners: Sequence[socket], metrics_dir: Path) -> GatewayProgram:
        settings = self._settings
        kwargs = {
            "name": name,
            "http_sockets": listeners,
            "requests_endpoint": self._endpoints.requests,
            "replies_endpoint": self._endpoints.replies,
            "connection_limits": connection_limits(settings),
            "body_limits": body_limits(settings),
            "certificate": self.certificate,  # as it is when a process starts
            "trusted_proxies": settings.http_trusted_proxies,
            "root_path": settings.root_path,
            "cors": settings.cors,
            "model_name": settings.served_model_name,
            "tokenizer_dir": str(self._folder),
            "drain_timeout_s": settings.drain_timeout,
            "api_keys": self.api_keys,  # a process gets the keys as they are when it starts
            "protect_metrics": settings.protect_metrics,
            "access_log": settings.access_log,
            "tracing": None if self._tracing is None else self._tracing.for_gateway(),
        }
        env = {"PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)}
        return self._program(GatewayProgram, name, "bert_serving.server.gateway.app:main", kwargs, env=env)

    def _program(
        self, kind: type[_P], name: str, target: str, kwargs: Mapping[str, object], *, env: Mapping[str, str]
    ) -> _P:
        return kind(name, target, kwargs, self._settings.log_options, str(self._folder), env)


def worker_env(present: Mapping[str, str]) -> dict[str, str]:
    """Return variables for the libraries of a worker. present: the environment; what is set there stays."""
    does_spin = not (present.get("GOMP_SPINCOUNT") or present.get("OMP_WAIT_POLICY"))
    spin = {"GOMP_SPINCOUNT": str(_SPIN_COUNT)} if does_spin else {}
    return spin | {name: size for name, size in _CACHES.items() if not present.get(name)}


def _key_source(settings: Settings) -> KeySource:
    if not settings.serves_http:
        return KeySource()
    fixed = unnamed_keys(key.get_secret_value() for key in settings.api_key)
    file = None if settings.api_key_file is None else Path(settings.api_key_file)
    return KeySource(fixed, file, num_gateways=settings.http_workers)


def _certificate_source(settings: Settings) -> CertificateSource | None:
    if settings.http_port is None or settings.tls_cert is None or settings.tls_key is None:
        return None
    return CertificateSource(Path(settings.tls_cert), Path(settings.tls_key))


def connection_limits(settings: Settings) -> dict[str, float]:
    """Return the fields of the gateway's ConnectionLimits."""
    return {
        "max_connections": settings.http_max_connect,
        "max_head_bytes": settings.http_max_head_kb << 10,
        "max_headers": settings.http_max_headers,
        "head_timeout_s": settings.http_head_timeout,
        "body_timeout_s": settings.http_body_timeout,
        "response_timeout_s": settings.http_response_timeout,
        "keep_alive_s": settings.http_keep_alive,
    }


def body_limits(settings: Settings) -> dict[str, int]:
    """Return the fields of the gateway's BodyLimits."""
    memory_mb = settings.http_memory_mb or _GATEWAY_MESSAGES * settings.max_message_mb
    share_of_queue = int(settings.queue_capacity * settings.flow_share)
    return {
        "max_bytes": settings.max_message_mb << 20,
        "max_items": min(share_of_queue, settings.http_max_texts or share_of_queue),
        "max_nesting": settings.http_max_nesting,
        "max_form_fields": settings.http_max_form_fields,
        "max_tokenize_chars": settings.http_max_tokenize_chars,
        "held_bytes": memory_mb << 20,
    }


def _make_private_folder() -> Path:
    """Return a new folder that only this user can read. It holds the private sockets and temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="bert-serving-", dir=os.environ.get("ZEROMQ_SOCK_TMP_DIR")))
    if len(str(folder)) > _MAX_FOLDER_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="bert-serving-", dir="/tmp"))
    return folder
