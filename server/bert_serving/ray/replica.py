"""A replica of the model in Ray Serve: an AsyncEncoder in a process of its own, on one GPU or some CPUs.

Only a replica loads torch. Whoever builds or controls the application imports this file without it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    JsonObject,
    Rows,
    ServingError,
    Spans,
    Text,
    Texts,
    WorkerFailed,
)
from bert_serving.protocol.errors import ErrorInfo
from ray import serve

from ..server.model.spec import ModelSpec
from ..server.settings import Settings
from ..server.supervisor.launch import worker_env
from .metrics import PublishedMetrics
from .policy import ReplicaLoad

if TYPE_CHECKING:
    from bert_serving.protocol import EncodeOptionsDict
    from typing_extensions import Unpack


class Engine:
    """The class of the deployment. A replica takes requests when its model is loaded and warmed up.

    settings: those of the server. device: torch's name of the device.
    """

    async def __init__(self, settings: Settings, device: str) -> None:  # type: ignore[misc]  # Ray awaits it
        os.environ.update(worker_env(os.environ))  # before torch is loaded
        from ..server.engine.async_encoder import AsyncEncoder

        self._settings = settings
        model = ModelSpec.of(settings, device=device).model_dump()
        self._engine = AsyncEncoder(
            model.pop("model_dir"),
            **model,
            memory_mb=settings.memory_mb,
            queue_capacity=settings.queue_capacity,
            flow_share=settings.flow_share,
            max_batch_size=settings.max_batch_size,
            priority_batch_size=settings.priority_batch_size,
            cache_mb=settings.cache_mb,
        )
        await self._engine.start()
        self._name = serve.get_replica_context().replica_tag
        self._ready_at = time.time()
        self._meter = BusyMeter(time.monotonic())
        self._watch = ProgressWatch(time.monotonic())
        self._metrics = PublishedMetrics(self._engine.metrics_text)
        self._publishing = asyncio.create_task(self._metrics.publish_forever())

    async def __del__(self) -> None:
        """Ray calls this when the replica has no request any more and must end."""
        if hasattr(self, "_publishing"):
            self._publishing.cancel()
            await self._engine.close()

    # -- vectors ---------------------------------------------------------------------------------------

    async def encode(
        self,
        texts: Texts,
        is_tokenized: bool = False,
        *,
        timeout_ms: int | None = None,
        flow: str | None = None,
        **options: Unpack[EncodeOptionsDict],
    ) -> Rows:
        """Return the vectors of the texts, as AsyncEncoder.encode does. For callers inside the Ray cluster."""
        return await self._engine.encode(texts, is_tokenized, timeout_ms=timeout_ms, flow=flow, **options)

    async def encode_reply(
        self,
        texts: Sequence[Text],
        options: EncodeOptions,
        spans: Sequence[Spans] | None,
        *,
        timeout_ms: int | None,
        flow: str | None,
        flow_share: float | None,
        trace: str | None,
    ) -> EncodeReply | ErrorInfo:
        """Return the reply, or the error that ended the request.

        An error is no exception here: Ray would write it to the log with its traceback, and errors contain texts.
        """
        try:
            _, reply = await self._engine.encode_reply(
                texts,
                options,
                spans,
                timeout_ms=timeout_ms,
                flow=flow,
                flow_share=flow_share,
                trace=trace,
            )
        except ServingError as exc:
            return exc.to_info()
        return reply

    # -- for the gateways ------------------------------------------------------------------------------

    async def state(self) -> JsonObject:
        """Return the facts about the model, what waits, and what was done so far."""
        worker = {"name": self._name, "state": "ready", **self._engine.model}
        return {"worker": worker, "ready_at": self._ready_at, **self._engine.status}

    async def metrics_text(self) -> tuple[str, str]:
        """Return (name of the replica, its metrics in Prometheus' text format)."""
        return self._name, self._engine.metrics_text()

    async def tokenizer(self, fingerprint: str) -> bytes | None:
        """Return the tokenizer's file, or None if this replica has another model."""
        if fingerprint != self._engine.model["fingerprint"]:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            self._engine.save_tokenizer(path)
            return path.read_bytes()

    # -- for Ray ---------------------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Raise WorkerFailed if the replica computes nothing more, so that Ray replaces it."""
        _ = self._engine.model  # raises Unavailable if the engine has failed
        status = self._engine.status
        idle_s = self._watch.idle_s(status["open_requests"], status["num_batch"], time.monotonic())
        if idle_s > self._settings.worker_timeout:
            raise WorkerFailed(f"no batch was computed for {idle_s:.0f} s, although requests wait")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the fields of ReplicaLoad. Ray averages them for the policy."""
        load = self._engine.load
        busy = self._meter.busy(load.busy_s, time.monotonic())
        return asdict(ReplicaLoad(load.queue_age_s, load.waiting_tokens, load.tokens_per_s, busy))


class BusyMeter:
    """Measures for which part of the time a device computes. now: monotonic seconds, as in `busy`."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._busy_s = 0.0

    def busy(self, busy_s: float, now: float) -> float:
        """Return the part of the time since the last call, 0 to 1. busy_s: seconds computed since the start."""
        elapsed = now - self._at
        part = min(1.0, (busy_s - self._busy_s) / elapsed) if elapsed > 0 else 0.0
        self._at, self._busy_s = now, busy_s
        return part


class ProgressWatch:
    """Notices that nothing is computed although requests wait. now: monotonic seconds, as in `idle_s`."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._num_batches = 0

    def idle_s(self, num_requests: int, num_batches: int, now: float) -> float:
        """Return the seconds since the last batch or the last moment without requests, as far as calls saw it."""
        if num_requests == 0 or num_batches != self._num_batches:
            self._at, self._num_batches = now, num_batches
        return now - self._at
