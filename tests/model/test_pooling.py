"""Each pooling strategy equals its formula in numpy, applied to each text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from bert_serving.server.worker.pooling import STRATEGIES, Segments, partial_segments, whole_segments
from hypothesis import given
from hypothesis import strategies as st

Array = npt.NDArray[np.float64]

CPU = torch.device("cpu")
LENGTHS = [1, 2, 5, 9, 9, 3]
HIDDEN = 7


def weighted_mean(tokens: Array) -> Array:
    weights = np.arange(1, len(tokens) + 1)
    return np.asarray((tokens * weights[:, None]).sum(0) / weights.sum())


#: Each formula computes the vector of a text from its token vectors (T, H).
FORMULAS: dict[str, Callable[[Array], Array]] = {
    "REDUCE_MEAN": lambda tokens: tokens.mean(0),
    "REDUCE_MAX": lambda tokens: tokens.max(0),
    "REDUCE_MEAN_MAX": lambda tokens: np.concatenate([tokens.mean(0), tokens.max(0)]),
    "CLS_TOKEN": lambda tokens: tokens[0],
    "FIRST_TOKEN": lambda tokens: tokens[0],
    "SEP_TOKEN": lambda tokens: tokens[-1],
    "LAST_TOKEN": lambda tokens: tokens[-1],
    "MEAN_SQRT_LEN": lambda tokens: tokens.sum(0) / np.sqrt(len(tokens)),
    "WEIGHTED_MEAN": weighted_mean,
}

every_strategy = pytest.mark.parametrize("name", list(STRATEGIES))


def random_rows(lengths: Sequence[int]) -> torch.Tensor:
    """Return random token vectors (T, H) for texts of these lengths."""
    return torch.randn(sum(lengths), HIDDEN, generator=torch.Generator().manual_seed(7))


def reference(name: str, hidden: torch.Tensor, lengths: Sequence[int] = LENGTHS) -> Array:
    """Return the vectors (B, D) that the formula gives for each text alone."""
    return np.stack([FORMULAS[name](tokens.double().numpy()) for tokens in hidden.split(list(lengths))])


def test_every_strategy_has_a_formula_in_this_file() -> None:
    assert set(FORMULAS) == set(STRATEGIES)


@every_strategy
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_strategy_equals_its_formula(name: str, lengths: list[int]) -> None:
    hidden = random_rows(lengths)
    rows = STRATEGIES[name](hidden, whole_segments(lengths).on(CPU)).numpy()
    np.testing.assert_allclose(rows, reference(name, hidden, lengths), rtol=1e-5, atol=1e-6)


@every_strategy
def test_vector_of_a_text_is_the_same_alone_and_in_a_batch(name: str) -> None:
    hidden = random_rows(LENGTHS)
    together = STRATEGIES[name](hidden, whole_segments(LENGTHS).on(CPU))
    parts = zip(hidden.split(LENGTHS), LENGTHS, strict=True)
    alone = [STRATEGIES[name](part, whole_segments([length]).on(CPU)) for part, length in parts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "WEIGHTED_MEAN"])
def test_tokens_that_are_left_out_do_not_count(name: str) -> None:
    """The tokens of a prompt, or special tokens, may be left out. Only the other tokens are pooled."""
    hidden = random_rows([4, 5])
    segments = partial_segments([[1, 2, 3], [5, 6, 8]], first=[1, 5], last=[3, 8], origin=[0, 4]).on(CPU)
    expected = reference(name, hidden[[1, 2, 3, 5, 6, 8]], [3, 3])
    np.testing.assert_allclose(STRATEGIES[name](hidden, segments).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weights_count_positions_from_the_beginning_of_the_text() -> None:
    hidden = random_rows([4])
    segments = partial_segments([[2, 3]], first=[2], last=[3], origin=[0]).on(CPU)
    expected = (3 * hidden[2] + 4 * hidden[3]) / 7
    torch.testing.assert_close(STRATEGIES["WEIGHTED_MEAN"](hidden, segments)[0], expected)


@pytest.mark.parametrize(
    "name", ["REDUCE_MEAN", "REDUCE_MAX", "REDUCE_MEAN_MAX", "MEAN_SQRT_LEN", "WEIGHTED_MEAN"]
)
def test_text_without_a_token_has_a_zero_vector(name: str) -> None:
    segments = partial_segments([[0, 1], []], first=[0, 1], last=[1, 1], origin=[0, 1]).on(CPU)
    assert not STRATEGIES[name](random_rows([2]), segments)[1].any()


@every_strategy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_token_that_is_not_finite_gives_a_vector_that_is_not_finite(name: str, value: float) -> None:
    hidden = random_rows([1, 3])
    hidden[0] = value
    rows = STRATEGIES[name](hidden, whole_segments([1, 3]).on(CPU))
    assert not torch.isfinite(rows[0]).any()
    assert torch.isfinite(rows[1]).all()


def test_maximum_of_negative_tokens_is_negative() -> None:
    rows = STRATEGIES["REDUCE_MAX"](torch.tensor([[-3.0], [-2.0]]), whole_segments([2]).on(CPU))
    assert rows.tolist() == [[-2.0]]


def test_lengths_and_positions_of_segments() -> None:
    segments: Segments = partial_segments([[0, 2], [4]], first=[0, 4], last=[2, 4], origin=[0, 3]).on(CPU)
    assert segments.lengths.tolist() == [2, 1]
    assert segments.positions.tolist() == [0, 2, 1]
