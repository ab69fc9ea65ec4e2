"""Builds the application for Ray Serve: the deployments `Gateway` (the ingress) and `Engine` (the model)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from ..server.model.demo import DEMO_MODEL
from ..server.settings import Settings
from ..server.supervisor.startup import count_gpus
from .gateway import Gateway
from .options import Replicas, parse_args
from .policy import QueuePolicy
from .replica import Engine

# A replica merges requests into batches itself, so it must see many of them. Its own limits are the server's:
# queue_capacity and memory_mb.
_MAX_ONGOING_REQUESTS = 4096
_MAX_QUEUED_REQUESTS = 4096  # of each process that sends requests to the replicas; beyond it: 429
_GRACE_S = 15.0  # what Ray may take for the end of a replica, beside drain_timeout
_HEALTH_CHECK_PERIOD_S = 2.0  # so long it may take until Ray replaces a replica that has died; Ray's default is 10
_LOOK_BACK_S = 15.0  # longer than the 10 s after which a replica reports again


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """Return the application. args: see docs/ray.md. Raises ModelError with a one-line message.

    Use it with `serve run bert_serving.ray:build_app model_dir=...`, with a config file, or with serve.run.
    """
    replicas, settings = parse_args(args)
    settings = settings.model_copy(
        update={"served_model_name": settings.served_model_name or _model_name(settings.model_dir)}
    )
    num_gpus = _num_gpus(replicas, settings)
    engine = serve.deployment(
        name="Engine",
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        max_queued_requests=_MAX_QUEUED_REQUESTS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        logging_config={"enable_access_log": False},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout + _GRACE_S,
        **_number(replicas),
    )(Engine)
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=settings.http_workers,
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        max_queued_requests=_MAX_QUEUED_REQUESTS,
        logging_config={"enable_access_log": False},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout + _GRACE_S,
    )(serve.ingress()(Gateway))
    app: serve.Application = gateway.bind(engine.bind(settings, "cuda:0" if num_gpus else "cpu"), settings)
    return app


def _number(replicas: Replicas) -> dict[str, Any]:
    """Return the arguments of a deployment for the number of its replicas."""
    if replicas.max_replicas is None:
        return {"num_replicas": replicas.num_replicas or 1}
    policy = AutoscalingPolicy(
        policy_function=QueuePolicy, policy_kwargs={"target_wait_s": replicas.target_wait_s}
    )
    config = AutoscalingConfig(
        min_replicas=replicas.min_replicas,
        max_replicas=replicas.max_replicas,
        look_back_period_s=_LOOK_BACK_S,
        upscale_delay_s=replicas.upscale_delay_s,
        downscale_delay_s=replicas.downscale_delay_s,
        policy=policy,
    )
    return {"autoscaling_config": config}


def _num_gpus(replicas: Replicas, settings: Settings) -> float:
    if settings.cpu:
        return 0
    if replicas.num_gpus is not None:
        return replicas.num_gpus
    # `serve run` builds the application before it connects to Ray.
    count = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else count_gpus()
    return min(1, math.ceil(count))


def _model_name(model_dir: str | None) -> str:
    """Return the model's name on the hub, or the name of its folder, which may be on other machines only."""
    if model_dir is None:
        return DEMO_MODEL
    is_folder = model_dir.startswith(("/", ".", "~")) or Path(model_dir).exists()
    return Path(model_dir).name if is_folder else model_dir
