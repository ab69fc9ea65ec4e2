"""What the broker tells about itself: the answers to SHOW_CONFIG and SHOW_STATUS."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import zmq
from bert_serving.protocol import Heartbeat

from ..compat.pooling_strategy import PoolingStrategy
from ..model.pooling import Pooling, PoolingRules
from ..model.sentence_transformers import read_sentence_transformers
from ..settings import Settings, own_version
from .metrics import BrokerMetrics, value_of
from .statistic import Statistic

#: What bert-serving-client 1.10.0 demands to hear.
COMPATIBLE_VERSION = "1.10.0"

_FRESH_FORWARD_S = 60.0  # an idle worker tries its model more often than this

#: What the original has where nothing was given, and this server decides for itself.
_ORIGINAL_DEFAULTS = {"ckpt_name": "bert_model.ckpt", "config_name": "bert_config.json", "num_labels": 2}


@dataclass(slots=True)
class WorkerView:
    """What the broker knows of one worker process.

    routing_id: its address once it is ready. facts: what it said of itself then. refusal: why it will not
    serve. heard_at: when its last message came, in monotonic seconds.
    """

    name: str
    routing_id: bytes | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    heard_at: float = 0.0
    refusal: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.routing_id is not None

    def has_fresh_forward(self, now: float) -> bool:
        """Whether it is ready and has computed something lately."""
        return self.is_ready and self._forward_age_s(now) < _FRESH_FORWARD_S

    def state(self, now: float) -> str:
        """Return one of the states that the metrics know."""
        if not self.is_ready:
            return "starting"
        return "ready" if self.has_fresh_forward(now) else "stale"

    def to_info(self, now: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": "ready" if self.is_ready else "starting",
            "forward_age_s": round(self._forward_age_s(now), 3) if self.heartbeat else None,
            **self.facts,
        }

    def _forward_age_s(self, now: float) -> float:
        return now - self.heard_at + (self.heartbeat.forward_age_s if self.heartbeat else 0.0)


class StatusReport:
    """Composes the answers from the settings, the counters and the workers.

    worker_endpoint: the socket between broker and workers.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: BrokerMetrics,
        workers: Mapping[str, WorkerView],
        statistic: Statistic,
        *,
        worker_endpoint: str,
    ) -> None:
        self._metrics = metrics
        self._workers = workers
        self._statistic = statistic
        self._fixed = {
            **_settings_info(settings),
            **_process_info(len(workers), num_gateways=_num_gateways(settings), endpoint=worker_endpoint),
            **_versions(),
            "server_start_time": _now(),
        }

    def config(self, client: bytes) -> dict[str, Any]:
        """Return the settings in force, and the versions behind them, to the client that asked."""
        labels = next((list(w.facts["labels"]) for w in self._workers.values() if "labels" in w.facts), None)
        return {
            **self._fixed,
            **({} if labels is None else {"num_labels": len(labels), "labels": labels}),
            "client": client.decode("ascii", "backslashreplace"),
            "server_current_time": _now(),
        }

    def status(self, client: bytes, now: float, *, is_ready: bool) -> dict[str, Any]:
        """Return the config, the counters and the state of each worker."""
        metrics = self._metrics
        return {
            **self.config(client),
            "ready": is_ready,
            "workers": [worker.to_info(now) for worker in self._workers.values()],
            "queue_texts": int(value_of(metrics.queue_texts)),
            "open_requests": int(value_of(metrics.open_requests)),
            "connected_clients": int(value_of(metrics.clients)),
            "num_batch": int(value_of(metrics.batches)),
            "num_encoded_seq": int(value_of(metrics.texts)),
            "num_encoded_token": int(value_of(metrics.tokens)),
            "statistic": self._statistic.report(now),
        }


def _settings_info(settings: Settings) -> dict[str, Any]:
    """Return the settings under the names, and with the types, that the original has for them."""
    pooling = _default_pooling(settings)
    strategy = PoolingStrategy.__members__.get(pooling.strategies[0]) if len(pooling.strategies) == 1 else None
    return {
        **settings.model_dump(),
        **{name: value for name, value in _ORIGINAL_DEFAULTS.items() if getattr(settings, name) is None},
        "do_lower_case": not settings.cased_tokenization,
        "device_map": list(settings.device_map),
        "max_seq_len": None if settings.max_seq_len == "NONE" else settings.max_seq_len,
        "pooling": list(settings.pooling_strategy),
        "pooling_strategy": None if strategy is None else strategy.value,
        "pooling_layer": list(pooling.layers),
    }


def _default_pooling(settings: Settings) -> Pooling:
    """Return the pooling of a request that names neither strategy nor layer."""
    folder = None if settings.model_dir is None else Path(settings.model_dir)
    return PoolingRules.of(settings, None if folder is None else read_sentence_transformers(folder)).default


def _num_gateways(settings: Settings) -> int:
    return 0 if settings.http_port is None else settings.http_workers


def _process_info(num_workers: int, *, num_gateways: int, endpoint: str) -> dict[str, Any]:
    """Return what the original tells of its processes and the sockets between them.

    Its ventilator and sink are one loop here, with one socket to all workers.
    """
    return {
        "num_process": 1 + num_workers + num_gateways,
        "ventilator -> worker": [endpoint],
        "worker -> sink": endpoint,
        "ventilator <-> sink": "inproc://broker",
        "num_concurrent_socket": 1,
    }


def _versions() -> dict[str, Any]:
    return {
        "server_version": COMPATIBLE_VERSION,
        "version": own_version(),
        "python_version": platform.python_version(),
        "pyzmq_version": zmq.pyzmq_version(),
        "zmq_version": zmq.zmq_version(),
        "tensorflow_version": [],  # a list of strings in the original; there is none here
        "torch_version": _torch_version(),
    }


def _torch_version() -> str | None:
    """Return the version that the workers will load; this process never does."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat()
