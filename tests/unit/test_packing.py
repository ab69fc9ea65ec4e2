"""Micro-batches: every sequence once, similar lengths together, within the tokens."""

from __future__ import annotations

import pytest
from bert_serving.server.worker.packing import plan_micro_batches
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(0, 600))
MAX_TOKENS = st.integers(1, 4096)


@given(LENGTHS, MAX_TOKENS)
def test_every_sequence_is_planned_exactly_once(lengths: list[int], max_tokens: int) -> None:
    plan = plan_micro_batches(lengths, max_tokens)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))


@given(LENGTHS, MAX_TOKENS)
def test_micro_batch_keeps_the_bound_with_its_padding_or_holds_one_sequence(
    lengths: list[int], max_tokens: int
) -> None:
    for batch in plan_micro_batches(lengths, max_tokens):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens


@given(LENGTHS, MAX_TOKENS)
def test_lengths_never_grow_along_the_plan(lengths: list[int], max_tokens: int) -> None:
    planned = [lengths[i] for batch in plan_micro_batches(lengths, max_tokens) for i in batch]
    assert planned == sorted(lengths, reverse=True)


@given(LENGTHS, MAX_TOKENS)
def test_no_micro_batch_is_empty(lengths: list[int], max_tokens: int) -> None:
    assert all(plan_micro_batches(lengths, max_tokens))


@given(LENGTHS, MAX_TOKENS)
def test_next_sequence_would_not_have_fitted(lengths: list[int], max_tokens: int) -> None:
    plan = plan_micro_batches(lengths, max_tokens)
    for batch in plan[:-1]:
        assert (len(batch) + 1) * max(1, lengths[batch[0]]) > max_tokens


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "plan"),
    [
        ([], 100, []),
        ([5], 1, [[0]]),
        ([10, 30, 20], 60, [[1, 2], [0]]),
        ([10, 10, 10, 10], 20, [[0, 1], [2, 3]]),
        ([500, 3, 400], 256, [[0], [2], [1]]),
    ],
)
def test_plan_is(lengths: list[int], max_tokens: int, plan: list[list[int]]) -> None:
    assert plan_micro_batches(lengths, max_tokens) == plan
