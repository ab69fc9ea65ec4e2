"""How many replicas there should be, from what waits in their queues and from how busy they are.

Rules of this file:
- Replicas are added if the work that waits would take longer than the target, or has waited longer. One decision
  at most doubles their number.
- Replicas are removed if fewer of them would be busy for at most _MAX_BUSY of the time, and little waits. After a
  replica was added for a full load, the others are busier than that. So no load makes the number go up and down.
- While replicas start, nothing is decided: the load of all of them is not known yet.

Ray averages what replicas report over time, waits for the configured delays, and applies the limits. This file
imports nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

_MAX_BUSY = 0.6


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What one replica reports, averaged over some seconds.

    queue_age_s: age of the oldest request that waits for its first batch. waiting_tokens: estimated tokens of the
    texts that wait. tokens_per_s: measured speed. busy: part of the time for which the device computes, 0 to 1.
    """

    queue_age_s: float
    waiting_tokens: float
    tokens_per_s: float
    busy: float


def wanted_replicas(loads: Sequence[ReplicaLoad], num_now: int, *, target_wait_s: float) -> int:
    """Return how many replicas there should be. num_now: how many there are or will be soon.

    target_wait_s: seconds that work may wait.
    """
    if not loads or len(loads) < num_now:
        return num_now
    tokens_per_s = sum(load.tokens_per_s for load in loads)
    backlog_s = sum(load.waiting_tokens for load in loads) / tokens_per_s if tokens_per_s > 0 else 0.0
    wait_s = max(backlog_s, sum(load.queue_age_s for load in loads) / len(loads))
    if wait_s > target_wait_s:
        return min(2 * num_now, math.ceil(num_now * wait_s / target_wait_s))
    needed = max(1, math.ceil(sum(load.busy for load in loads) / _MAX_BUSY))
    return needed if needed < num_now and wait_s < target_wait_s / 2 else num_now


class QueuePolicy:
    """The policy for Ray's AutoscalingPolicy. target_wait_s: see `wanted_replicas`."""

    def __init__(self, target_wait_s: float) -> None:
        self._target_wait_s = target_wait_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:  # a ray.serve.config.AutoscalingContext
        """Return (how many replicas there should be, the state of this policy, which is empty)."""
        num_now = max(context.current_num_replicas, context.target_num_replicas)
        if context.current_num_replicas != context.target_num_replicas:
            return context.target_num_replicas, {}
        loads = loads_of(context.aggregated_metrics or {})
        return wanted_replicas(loads, num_now, target_wait_s=self._target_wait_s), {}


def loads_of(metrics: Mapping[str, Mapping[Any, float]]) -> list[ReplicaLoad]:
    """Return the load of each replica that has reported all values. metrics: values by name and replica."""
    by_name = [metrics.get(field.name, {}) for field in fields(ReplicaLoad)]
    replicas = set(by_name[0]).intersection(*by_name[1:])
    return [ReplicaLoad(*(values[replica] for values in by_name)) for replica in replicas]
