"""What the broker tells about itself: the answers to SHOW_CONFIG and SHOW_STATUS."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import zmq
from bert_serving.protocol import Heartbeat

from ..metrics import BrokerMetrics, value_of
from ..settings import Settings, own_version

#: What bert-serving-client 1.10.0 demands to hear.
COMPATIBLE_VERSION = "1.10.0"

_FRESH_FORWARD_S = 60.0  # an idle worker tries its model more often than this


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
    """Composes the answers from the settings, the counters and the workers."""

    def __init__(self, settings: Settings, metrics: BrokerMetrics, workers: Mapping[str, WorkerView]) -> None:
        self._settings = settings.to_info()
        self._metrics = metrics
        self._workers = workers
        self._started_at = _now()

    def config(self) -> dict[str, Any]:
        """Return the settings in force, and the versions behind them."""
        return {
            **self._settings,
            "server_version": COMPATIBLE_VERSION,
            "version": own_version(),
            "python_version": platform.python_version(),
            "pyzmq_version": zmq.pyzmq_version(),
            "zmq_version": zmq.zmq_version(),
            "server_start_time": self._started_at,
            "server_current_time": _now(),
        }

    def status(self, now: float, *, is_ready: bool) -> dict[str, Any]:
        """Return the config, the counters and the state of each worker."""
        metrics = self._metrics
        num_data, num_sys = int(value_of(metrics.requests)), int(value_of(metrics.commands))
        return {
            **self.config(),
            "ready": is_ready,
            "workers": [worker.to_info(now) for worker in self._workers.values()],
            "queue_texts": int(value_of(metrics.queue_texts)),
            "open_requests": int(value_of(metrics.open_requests)),
            "num_batch": int(value_of(metrics.batches)),
            "statistic": {
                "num_data_request": num_data,
                "num_sys_request": num_sys,
                "num_total_request": num_data + num_sys,
                "num_total_seq": int(value_of(metrics.texts)),
                "num_total_client": int(value_of(metrics.subscriptions)),
                "num_active_client": int(value_of(metrics.clients)),
            },
        }


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat()
