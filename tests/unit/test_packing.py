"""Micro-batches contain each sequence once, sorted by length, within the token limit.

The sequences of a group have equal lengths.
"""

from __future__ import annotations

import itertools

import pytest
from bert_serving.server.worker.packing import (
    MAX_LANE_TOKENS,
    Group,
    groups_of,
    plan_for_lanes,
    plan_micro_batches,
)
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 600))
MAX_TOKENS = st.integers(1, 4096)


@given(LENGTHS, MAX_TOKENS, st.booleans())
def test_every_sequence_is_planned_exactly_once(lengths: list[int], max_tokens: int, padded: bool) -> None:
    plan = plan_micro_batches(lengths, max_tokens, padded=padded)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    assert all(plan)


@given(LENGTHS, MAX_TOKENS)
def test_micro_batch_keeps_the_limit_or_holds_one_sequence(lengths: list[int], max_tokens: int) -> None:
    for batch in plan_micro_batches(lengths, max_tokens):
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= max_tokens


@given(LENGTHS, MAX_TOKENS)
def test_padded_micro_batch_keeps_the_limit_with_its_padding(lengths: list[int], max_tokens: int) -> None:
    for batch in plan_micro_batches(lengths, max_tokens, padded=True):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens


@given(LENGTHS, MAX_TOKENS, st.booleans())
def test_lengths_never_grow_along_the_plan(lengths: list[int], max_tokens: int, padded: bool) -> None:
    planned = [lengths[i] for batch in plan_micro_batches(lengths, max_tokens, padded=padded) for i in batch]
    assert planned == sorted(lengths, reverse=True)


@given(LENGTHS, MAX_TOKENS)
def test_micro_batch_is_full(lengths: list[int], max_tokens: int) -> None:
    plan = plan_micro_batches(lengths, max_tokens)
    for batch, after in itertools.pairwise(plan):
        assert sum(lengths[i] for i in [*batch, after[0]]) > max_tokens


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "padded", "plan"),
    [
        ([], 100, False, []),
        ([5], 1, False, [[0]]),
        ([10, 30, 20], 60, False, [[1, 2, 0]]),
        ([10, 30, 20], 60, True, [[1, 2], [0]]),
        ([10, 10, 10, 10], 20, True, [[0, 1], [2, 3]]),
        ([500, 3, 400], 256, True, [[0], [2], [1]]),
        ([500, 3, 400], 256, False, [[0], [2], [1]]),
    ],
)
def test_plan_has_the_expected_micro_batches(
    lengths: list[int], max_tokens: int, padded: bool, plan: list[list[int]]
) -> None:
    assert plan_micro_batches(lengths, max_tokens, padded=padded) == plan


@given(LENGTHS, st.integers(2, 8))
def test_lanes_share_every_sequence(lengths: list[int], lanes: int) -> None:
    plan = plan_for_lanes(lengths, lanes)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    assert all(plan)
    planned = [lengths[i] for batch in plan for i in batch]
    assert planned == sorted(lengths, reverse=True)


@given(st.lists(st.integers(3, 100), min_size=40), st.integers(2, 8))
def test_each_lane_gets_as_much_as_the_others(lengths: list[int], lanes: int) -> None:
    sizes = [sum(lengths[i] for i in batch) for batch in plan_for_lanes(lengths, lanes)]
    assert max(sizes) <= MAX_LANE_TOKENS
    if sum(lengths) >= 24 * lanes:
        assert max(sizes) - min(sizes) <= 2 * max(lengths)
        assert len(sizes) % lanes == 0 or max(lengths) > min(sizes)


@pytest.mark.parametrize(
    ("lengths", "plan"),
    [
        ([], []),
        ([40], [[0]]),
        ([20, 20], [[0, 1]]),
        ([30, 30], [[0], [1]]),
        ([5, 60, 50, 5], [[1], [2, 0, 3]]),
        ([256] * 4, [[0], [1], [2], [3]]),
        ([128] * 5, [[0], [1], [2, 3], [4]]),
        ([2000, 30, 30], [[0], [1, 2]]),
    ],
)
def test_lanes_have_the_expected_micro_batches(lengths: list[int], plan: list[list[int]]) -> None:
    assert plan_for_lanes(lengths, 2) == plan


def test_groups_are_runs_of_equal_length() -> None:
    assert groups_of([7, 7, 4, 2, 2, 2]) == [Group(0, 2, 7), Group(14, 1, 4), Group(18, 3, 2)]
    assert groups_of([]) == []


@given(LENGTHS)
def test_groups_cover_the_row_without_a_gap(lengths: list[int]) -> None:
    groups = groups_of(sorted(lengths))
    assert [length for g in groups for length in [g.length] * g.count] == sorted(lengths)
    assert [g.start for g in groups] == [0, *(g.stop for g in groups[:-1])][: len(groups)]
    assert len({g.length for g in groups}) == len(groups)
