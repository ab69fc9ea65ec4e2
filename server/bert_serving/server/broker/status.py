"""The replies to SHOW_CONFIG and SHOW_STATUS."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import zmq
from bert_serving.protocol import WIRE_VERSION

from ..compat.pooling_strategy import PoolingStrategy
from ..model.pooling import Pooling, PoolingRules
from ..model.sentence_transformers import read_sentence_transformers
from ..settings import Settings, own_version
from .metrics import BrokerMetrics
from .statistic import Statistic
from .workers import WorkerView

#: Values that bert-as-service reports for settings that were not given. This server reports them too, but does not
#: use them: it finds the real values itself.
_ORIGINAL_DEFAULTS = {"ckpt_name": "bert_model.ckpt", "config_name": "bert_config.json", "num_labels": 2}

#: Settings that say how the server is protected. Clients are told only whether CURVE is on.
_HIDDEN = {"api_key", "api_key_file", "curve_dir"}


class StatusReport:
    """Makes the replies from the settings, the counters and the workers.

    worker_endpoint: address of the socket between broker and workers.
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

    def config(self, client: bytes) -> dict[str, object]:
        """Return the current settings and the versions of the software. client: identity of the sender."""
        labels = next((list(w.facts.labels) for w in self._workers.values() if w.facts and w.facts.labels), None)
        return {
            **self._fixed,
            **({} if labels is None else {"num_labels": len(labels), "labels": labels}),
            "client": client.decode("ascii", "backslashreplace"),
            "server_current_time": _now(),
        }

    def status(
        self, client: bytes, now: float, *, loop_now: float, is_ready: bool, model: str
    ) -> dict[str, object]:
        """Return the config, the counters and the state of each worker.

        loop_now: time of the loop's clock. model: fingerprint of the newest model.
        """
        metrics = self._metrics
        return {
            **self.config(client),
            "ready": is_ready,
            "model": model,
            "workers": [worker.to_info(loop_now) for worker in self._workers.values()],
            "queue_texts": int(metrics.queue_texts.value),
            "open_requests": int(metrics.open_requests.value),
            "connected_clients": int(metrics.clients.value),
            "num_batch": int(metrics.batches.value),
            "num_encoded_seq": int(metrics.texts.value),
            "num_encoded_token": int(metrics.tokens.value),
            "statistic": self._statistic.report(now),
        }


def _settings_info(settings: Settings) -> dict[str, object]:
    """Return the settings under bert-as-service's names, and with bert-as-service's types."""
    pooling = _default_pooling(settings)
    strategy = PoolingStrategy.__members__.get(pooling.strategies[0]) if len(pooling.strategies) == 1 else None
    return {
        **settings.model_dump(exclude=_HIDDEN),
        **{name: value for name, value in _ORIGINAL_DEFAULTS.items() if getattr(settings, name) is None},
        "curve": settings.curve_dir is not None,
        "do_lower_case": not settings.cased_tokenization,
        "device_map": list(settings.device_map),
        "max_seq_len": None if settings.max_seq_len == "NONE" else settings.max_seq_len,
        "pooling": list(settings.pooling_strategy),
        "pooling_strategy": None if strategy is None else strategy.value,
        "pooling_layer": list(pooling.layers),
    }


def _default_pooling(settings: Settings) -> Pooling:
    """Return the pooling of a request that chooses neither strategy nor layer."""
    folder = None if settings.model_dir is None else Path(settings.model_dir)
    return PoolingRules.of(settings, None if folder is None else read_sentence_transformers(folder)).default


def _num_gateways(settings: Settings) -> int:
    return settings.http_workers if settings.serves_http else 0


def _process_info(num_workers: int, *, num_gateways: int, endpoint: str) -> dict[str, object]:
    """Return what bert-as-service reports about its processes and the sockets between them.

    The ventilator and the sink of bert-as-service are one loop in this server. This loop has one socket to all
    workers.
    """
    return {
        "num_process": 1 + num_workers + num_gateways,
        "ventilator -> worker": [endpoint],
        "worker -> sink": endpoint,
        "ventilator <-> sink": "inproc://broker",
        "num_concurrent_socket": 1,
    }


def _versions() -> dict[str, object]:
    return {
        "server_version": WIRE_VERSION,
        "version": own_version(),
        "python_version": platform.python_version(),
        "pyzmq_version": zmq.pyzmq_version(),
        "zmq_version": zmq.zmq_version(),
        "tensorflow_version": [],  # in bert-as-service, a list of strings; this server does not use TensorFlow
        "torch_version": _torch_version(),
    }


def _torch_version() -> str | None:
    """Return the version of torch that the workers load, without loading it in this process."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).astimezone().isoformat()
