"""When replicas in Ray Serve are added and removed. These tests need no Ray."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from bert_serving.ray.policy import QueuePolicy, ReplicaLoad, wanted_replicas

TARGET_S = 2.0
SPEED = 1000.0


def load(*, age_s: float = 0.0, backlog_s: float = 0.0, busy: float = 0.0) -> ReplicaLoad:
    return ReplicaLoad(age_s, backlog_s * SPEED, SPEED, busy)


def wanted(*loads: ReplicaLoad, num_now: int | None = None) -> int:
    return wanted_replicas(loads, num_now or len(loads), target_wait_s=TARGET_S)


def test_an_idle_replica_stays_alone() -> None:
    assert wanted(load()) == 1


@pytest.mark.parametrize("waiting", [{"age_s": 2.1}, {"backlog_s": 2.1}])
def test_work_that_waits_longer_than_the_target_adds_a_replica(waiting: dict[str, float]) -> None:
    assert wanted(load(busy=1, **waiting)) == 2


def test_a_busy_replica_without_a_queue_is_enough() -> None:
    assert wanted(load(busy=1, backlog_s=0.1)) == 1


def test_one_decision_at_most_doubles_the_replicas() -> None:
    assert wanted(*[load(busy=1, backlog_s=1000)] * 3) == 6


def test_the_backlog_of_all_replicas_counts_together() -> None:
    assert wanted(load(busy=1, backlog_s=3), load(busy=0.1)) == 2
    assert wanted(load(busy=1, backlog_s=5), load(busy=0.1)) == 3


def test_idle_replicas_are_removed_but_one() -> None:
    assert wanted(*[load()] * 4) == 1
    assert wanted(*[load(busy=0.5)] * 4) == 4
    assert wanted(*[load(busy=0.4)] * 4) == 3


def test_replicas_with_a_queue_are_not_removed() -> None:
    assert wanted(load(backlog_s=4), load()) == 2


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 8])
def test_a_load_that_added_a_replica_does_not_remove_it(num_replicas: int) -> None:
    assert wanted(*[load(busy=1, backlog_s=2.1)] * num_replicas) > num_replicas
    after = num_replicas + 1
    assert wanted(*[load(busy=num_replicas / after)] * after) == after


def test_nothing_is_decided_while_a_replica_has_not_reported() -> None:
    assert wanted(num_now=2) == 2
    assert wanted(load(busy=1, backlog_s=1000), num_now=2) == 2


def context(num_now: int, target: int, *loads: ReplicaLoad) -> Any:
    metrics: dict[str, dict[int, float]] = {}
    for i, each in enumerate(loads):
        for name, value in asdict(each).items():
            metrics.setdefault(name, {})[i] = value
    return SimpleNamespace(current_num_replicas=num_now, target_num_replicas=target, aggregated_metrics=metrics)


def test_the_policy_reads_what_ray_has_averaged() -> None:
    policy = QueuePolicy(TARGET_S)
    assert policy(context(1, 1, load(busy=1, backlog_s=9))) == (2, {})
    assert policy(context(2, 2, load(busy=0.1), load(busy=0.1))) == (1, {})
    assert policy(context(1, 1)) == (1, {})


def test_the_policy_waits_for_replicas_that_start_or_end() -> None:
    policy = QueuePolicy(TARGET_S)
    assert policy(context(1, 2, load(busy=1, backlog_s=1000))) == (2, {})
    assert policy(context(2, 1, load(), load())) == (1, {})
