"""A phase of a step stops when its time is over; the rest of its work is done in later steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from bert_serving.server.broker.budget import Budget, Chores


def budget_of(pieces: int) -> Budget:
    """Return a budget that allows this number of pieces of work: each look at its clock takes one second."""
    return Budget(pieces + 0.5, itertools.count().__next__)


def test_a_budget_ends_with_its_time() -> None:
    budget = budget_of(2)
    assert [budget.is_spent for _ in range(4)] == [False, False, True, True]


def pieces(done: list[str], name: str, count: int) -> Iterator[None]:
    for i in range(count):
        done.append(f"{name}{i}")
        yield


def test_chores_are_done_in_pieces_and_in_their_order() -> None:
    chores, done = Chores(), list[str]()
    chores.add(pieces(done, "a", 5))
    chores.add(pieces(done, "b", 2))
    sizes = []
    while chores:
        chores.run(budget_of(3))
        sizes.append(len(done))
    assert done == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]
    assert len(sizes) > 2


def test_no_chore_is_begun_without_time() -> None:
    chores, done = Chores(), list[str]()
    chores.add(pieces(done, "a", 1))
    chores.run(budget_of(0))
    assert (done, bool(chores)) == ([], True)
