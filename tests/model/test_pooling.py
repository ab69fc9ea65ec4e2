"""Each pooling strategy against its formula in numpy, text by text, without padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from bert_serving.server.worker.pooling import STRATEGIES, pool

Array = npt.NDArray[np.float64]

LENGTHS = [1, 2, 5, 9, 9, 3]
WIDTH, HIDDEN = 9, 7


def weighted_mean(tokens: Array) -> Array:
    weights = np.arange(1, len(tokens) + 1)
    return np.asarray((tokens * weights[:, None]).sum(0) / weights.sum())


#: tokens (T, H) of one text, without padding -> its vector.
FORMULAS: dict[str, Callable[[Array], Array]] = {
    "REDUCE_MEAN": lambda tokens: tokens.mean(0),
    "REDUCE_MAX": lambda tokens: tokens.max(0),
    "REDUCE_MEAN_MAX": lambda tokens: np.concatenate([tokens.mean(0), tokens.max(0)]),
    "CLS_TOKEN": lambda tokens: tokens[0],
    "FIRST_TOKEN": lambda tokens: tokens[0],
    "SEP_TOKEN": lambda tokens: tokens[-1],
    "LAST_TOKEN": lambda tokens: tokens[-1],
    "mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.max(0),
    "cls": lambda tokens: tokens[0],
    "lasttoken": lambda tokens: tokens[-1],
    "mean_sqrt_len_tokens": lambda tokens: tokens.sum(0) / np.sqrt(len(tokens)),
    "weightedmean": weighted_mean,
}

every_strategy = pytest.mark.parametrize("name", list(STRATEGIES))


@pytest.fixture
def hidden() -> torch.Tensor:
    """(B, T, H): negative as often as positive, the padding as large as the rest."""
    return torch.randn(len(LENGTHS), WIDTH, HIDDEN, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def mask() -> torch.Tensor:
    """(B, T), 1 = real token."""
    return (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).long()


def reference(name: str, hidden: torch.Tensor) -> Array:
    """The formula, applied to each text alone."""
    texts = [hidden[i, :length].double().numpy() for i, length in enumerate(LENGTHS)]
    return np.stack([FORMULAS[name](tokens) for tokens in texts])


def test_every_strategy_has_its_formula_here() -> None:
    assert set(FORMULAS) == set(STRATEGIES)


@every_strategy
def test_strategy_equals_its_formula(name: str, hidden: torch.Tensor, mask: torch.Tensor) -> None:
    rows = pool(hidden, mask, [name], normalize=False).numpy()
    np.testing.assert_allclose(rows, reference(name, hidden), rtol=1e-5, atol=1e-6)


@every_strategy
@pytest.mark.parametrize("padding", [0.0, 1e4, -1e4])
def test_value_of_the_padding_never_changes_a_row(
    name: str, padding: float, hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    padded = hidden.masked_fill(mask[..., None] == 0, padding)
    rows = pool(padded, mask, [name], normalize=False)
    assert torch.equal(rows, pool(hidden, mask, [name], normalize=False))


@every_strategy
def test_amount_of_padding_never_changes_a_row(name: str, hidden: torch.Tensor, mask: torch.Tensor) -> None:
    wider = torch.cat([hidden, torch.full((len(LENGTHS), 20, HIDDEN), 3.0)], dim=1)
    wider_mask = torch.cat([mask, torch.zeros(len(LENGTHS), 20, dtype=torch.long)], dim=1)
    rows = pool(wider, wider_mask, [name], normalize=False)
    torch.testing.assert_close(rows, pool(hidden, mask, [name], normalize=False), rtol=1e-6, atol=1e-6)


@every_strategy
@pytest.mark.parametrize("padding", [float("nan"), float("inf")])
def test_not_even_a_padding_that_is_no_number_changes_a_row(
    name: str, padding: float, hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    padded = hidden.masked_fill(mask[..., None] == 0, padding)
    rows = pool(padded, mask, [name], normalize=False)
    assert torch.equal(rows, pool(hidden, mask, [name], normalize=False))


@every_strategy
def test_row_of_a_text_is_the_same_alone_and_in_company(
    name: str, hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    together = pool(hidden, mask, [name], normalize=False)
    alone = [
        pool(hidden[i : i + 1, :n], mask[i : i + 1, :n], [name], normalize=False) for i, n in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_strategy
def test_sums_of_half_precision_run_in_float32(
    name: str, dtype: torch.dtype, hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    half = hidden.to(dtype)
    rows = pool(half, mask, [name], normalize=False)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows.numpy(), reference(name, half), rtol=1e-5, atol=1e-6)


def test_large_half_precision_values_do_not_overflow() -> None:
    hidden = torch.full((1, 64, HIDDEN), 60_000.0, dtype=torch.float16)
    rows = pool(hidden, torch.ones(1, 64), ["mean"], normalize=False)
    assert rows.tolist() == [[float(torch.tensor(60_000.0, dtype=torch.float16))] * HIDDEN]


def test_maximum_of_negative_tokens_is_negative() -> None:
    hidden = torch.tensor([[[-3.0], [-2.0], [9.0]]])
    assert pool(hidden, torch.tensor([[1, 1, 0]]), ["max"], normalize=False).tolist() == [[-2.0]]


def test_several_poolings_stand_side_by_side_in_their_order(hidden: torch.Tensor, mask: torch.Tensor) -> None:
    rows = pool(hidden, mask, ["max", "cls"], normalize=False)
    parts = [pool(hidden, mask, [name], normalize=False) for name in ("max", "cls")]
    assert torch.equal(rows, torch.cat(parts, dim=1))


def test_mean_and_max_are_twice_as_wide(hidden: torch.Tensor, mask: torch.Tensor) -> None:
    assert pool(hidden, mask, ["REDUCE_MEAN_MAX"], normalize=False).shape == (len(LENGTHS), 2 * HIDDEN)


def test_normalized_rows_have_length_one_and_keep_their_direction(
    hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    rows = reference("mean", hidden)
    normalized = pool(hidden, mask, ["mean"], normalize=True).numpy()
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-6)


def test_normalization_is_over_all_poolings_together(hidden: torch.Tensor, mask: torch.Tensor) -> None:
    rows = pool(hidden, mask, ["mean", "max"], normalize=True)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(LENGTHS)))


def test_row_of_zeros_stays_zero_when_normalized() -> None:
    rows = pool(torch.zeros(1, 2, 3), torch.ones(1, 2), ["mean"], normalize=True)
    assert rows.tolist() == [[0.0, 0.0, 0.0]]
