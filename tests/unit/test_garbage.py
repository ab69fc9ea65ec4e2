"""Full garbage collections are made while little is held."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from bert_serving.server.broker.memory_guard import rss_bytes
from bert_serving.server.supervisor.garbage import GarbageCollection


@pytest.fixture(autouse=True)
def _own_thresholds() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.parametrize(
    ("seconds", "num_held", "is_made"),
    [(8, 0, False), (11, 0, True), (11, 999, True), (11, 1000, False), (3601, 100_000, True)],
)
def test_a_collection_waits_until_little_is_held(seconds: float, num_held: int, is_made: bool) -> None:
    garbage = GarbageCollection(100.0)
    assert garbage.run_if_due(100.0 + seconds, num_held) == is_made
    assert not garbage.run_if_due(100.0 + seconds + 1, num_held)


def test_automatic_full_collections_are_off() -> None:
    young, middle, _ = gc.get_threshold()
    GarbageCollection(0.0)
    assert gc.get_threshold() == (young, middle, 1 << 30)


def test_a_cycle_is_freed_by_a_collection() -> None:
    garbage = GarbageCollection(0.0)
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    before = gc.get_stats()[2]["collections"]
    garbage.run_if_due(100.0, 0)
    assert gc.get_stats()[2]["collections"] == before + 1


def test_freed_memory_is_returned_to_the_system() -> None:
    garbage = GarbageCollection(0.0)
    blocks = [bytes(4000) for _ in range(20_000)]
    last = bytes(4000)  # as long as it exists, glibc does not return what lies before it
    held = rss_bytes(os.getpid())
    blocks.clear()
    garbage.run_if_due(100.0, 0)
    assert held - rss_bytes(os.getpid()) > 60 << 20
    assert len(last) == 4000
