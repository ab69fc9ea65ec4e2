"""The limit for the memory of the server's process."""

from __future__ import annotations

import pytest
from bert_serving.server.broker import memory_guard
from bert_serving.server.broker.memory_guard import MemoryGuard


@pytest.fixture
def rss(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The memory that the process seems to have: 100 bytes, until a test changes the item."""
    found = [100]
    monkeypatch.setattr(memory_guard, "rss_bytes", lambda _: found[0])
    return found


def test_the_limit_counts_from_the_start(rss: list[int]) -> None:
    guard = MemoryGuard(50)
    rss[0] = 150
    assert not guard.is_exceeded(1.0)
    rss[0] = 151
    assert guard.is_exceeded(2.0)


def test_after_an_answer_there_is_a_pause_in_which_memory_can_be_freed(rss: list[int]) -> None:
    guard = MemoryGuard(50)
    rss[0] = 1000
    assert [guard.is_exceeded(now) for now in (1.0, 1.2, 1.31)] == [True, False, True]


def test_memory_that_something_else_holds_raises_the_limit(rss: list[int]) -> None:
    guard = MemoryGuard(50)
    rss[0] = 1000
    found = [guard.is_exceeded(float(now)) for now in range(1, 20)]
    assert found == [True] * 11 + [False] * 8
    rss[0] = 1051
    assert guard.is_exceeded(100.0)


def test_the_memory_of_this_process_is_known() -> None:
    assert MemoryGuard(1 << 40)._limit > (1 << 40) + (10 << 20)
