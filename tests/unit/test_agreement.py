"""The measures of bert-serving-compare, on arrays whose agreement is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from bert_serving.train import agreement

Measure: TypeAlias = Callable[[agreement.Vectors, agreement.Vectors], float]

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(400, 16)).astype(np.float32)
ROTATION, _ = np.linalg.qr(RANDOM.normal(size=(16, 16)))
OTHER = RANDOM.normal(size=(400, 16)).astype(np.float32)


def spearman(a: agreement.Vectors, b: agreement.Vectors) -> float:
    return agreement.rank_correlation(agreement.pairwise_cosines(a), agreement.pairwise_cosines(b))


@pytest.mark.parametrize(
    "measure", [spearman, agreement.neighbours_overlap, agreement.linear_cka, agreement.rotated_cosine]
)
def test_a_rotated_space_agrees_completely_and_a_random_one_hardly(measure: Measure) -> None:
    assert measure(A, A @ ROTATION) == pytest.approx(1)
    assert measure(A, A) == pytest.approx(1)
    assert abs(measure(A, OTHER)) < 0.2


@pytest.mark.parametrize("num_texts", [40, 400])
def test_what_all_texts_share_and_few_texts_make_no_agreement(num_texts: int) -> None:
    a, b = (RANDOM.normal(size=(num_texts, 16)) + 2 for _ in range(2))
    for measure in (agreement.linear_cka, rotated):
        assert abs(measure(a, b)) < 0.25
        assert measure(a, a @ ROTATION) == pytest.approx(1)
    assert np.mean([agreement.linear_cka(*RANDOM.normal(size=(2, 20, 64))) for _ in range(50)]) < 0.1


def test_the_cosine_is_not_changed_by_lengths_but_by_a_rotation() -> None:
    assert agreement.mean_cosine(A, 3 * A) == pytest.approx(1)
    assert agreement.mean_cosine(A, A @ ROTATION) < 0.5


def test_a_narrower_space_can_be_compared() -> None:
    narrow, other = A[:, :8], OTHER[:, :8]
    for measure in (spearman, agreement.neighbours_overlap, agreement.linear_cka, rotated):
        assert measure(A, other) < measure(A, narrow) < 1


def rotated(a: agreement.Vectors, b: agreement.Vectors) -> float:
    found = agreement.rotated_cosine(a, b)
    assert found is not None
    return found


def test_neighbours_are_shared_in_part() -> None:
    """Texts at these angles: the nearest one of each is 1, 0, 3, 2, and then 1, 0, 1, 0."""
    before, after = (
        np.stack([np.cos(angles), np.sin(angles)], axis=1)
        for angles in (np.array([0, 0.1, 1, 1.1]), np.array([0, 0.1, 1, -1]))
    )
    assert agreement.neighbours_overlap(before, after, 1) == 0.5
    assert agreement.neighbours_overlap(before, before, 1) == 1


def test_a_rotation_is_not_measured_with_too_few_texts() -> None:
    assert agreement.rotated_cosine(A[:39], A[:39]) is None
    assert agreement.rotated_cosine(A[:40], A[:40]) == pytest.approx(1)


def test_three_texts_are_too_few_for_cka() -> None:
    assert np.isnan(agreement.linear_cka(A[:3], A[:3]))


def test_constant_numbers_have_no_ranks() -> None:
    assert np.isnan(agreement.rank_correlation(np.ones(5), np.arange(5)))


def test_a_vector_of_zeros_makes_no_nan() -> None:
    assert not np.isnan(agreement.unit(np.zeros((2, 3)))).any()
