"""Compares what a model serves with what its reference serves, at load time.

The reference is the model as Transformers runs it: padded, in float32, with eager attention. The comparison covers
everything between the token ids and the rows that a caller gets: layers, pooling, heads, dense layers and
normalization.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from bert_serving.protocol import EncodeOptions

from ..model.errors import ModelError
from .arrays import dense
from .execution import MIN_COSINE
from .micro_batches import Budget, PreparedText, computed, micro_batches
from .pooling_plan import PoolingPlan, PoolingPlanner, needs_classifier
from .sequences import TokenizedText
from .transformer import Transformer

log = logging.getLogger(__name__)

#: Short and long texts, pairs, and texts with numbers, code and other scripts than Latin.
PROBES = [
    "a",
    "Hello world!",
    "Is it?",
    "one two three",
    "In 1994 the price rose by 3.5 %, from $1,200 to $1,242.",
    "Grüße aus Zürich, 東京 и Москва",
    "def add(a, b): return a + b  # the sum",
    "THE END",
    "The quick brown fox jumps over the dog, and the dog does not mind.",
    "He said that he would come, but nobody had seen him since the train left the station on Monday morning.",
    "how do I reset my password? ||| Open the settings, choose Account, and then press the button at the end.",
    "the first ||| and the second",
    "A city is a place where many people live close together. "
    "It has streets, shops, schools and a government, and it grows when work can be found there. "
    "Cities trade with villages around them: food comes in, and tools, books and news go out. "
    "Some are three thousand years old, others were planned on paper and built within ten years.",
    " ".join(f"Line {i} is about number {i * i % 97}." for i in range(70)),
]

_MICRO_BATCH_TOKENS = 512  # few, so that a padded forward pass has little padding
# A row whose norm is below this part of the largest one counts as zero: its direction is an accident of rounding.
_NEGLIGIBLE = 1e-3

_Matrix = npt.NDArray[np.float64]


def served_plans(planner: PoolingPlanner, labels: Sequence[str]) -> list[PoolingPlan]:
    """Return the plan of a request without options, and for a model with labels also that of its head.

    labels: of the classification head, if any.
    """
    plans = [planner.default]
    if labels and not needs_classifier(planner.default.poolings):
        head = "CLASSIFICATION" if len(labels) > 1 else "LOGITS"
        plans.append(planner(EncodeOptions(pooling_strategy=(head,))))
    return plans


@dataclass(frozen=True, slots=True)
class _Expected:
    """The probes with one plan, and their rows from the reference, (N, D)."""

    prepared: list[PreparedText]
    rows: _Matrix


class ParityCheck:
    """Knows the rows of the reference, and compares those of a transformer with them.

    reference: the transformer that runs as the reference. It is used only in the constructor, because its model is
    changed afterwards. probes: tokenized texts. plans: what is computed from their hidden states.
    hide_specials: do not pool special tokens.
    """

    def __init__(
        self,
        reference: Transformer,
        probes: Sequence[TokenizedText],
        plans: Sequence[PoolingPlan],
        *,
        hide_specials: bool,
    ) -> None:
        self._hides_specials = hide_specials
        prepared_for = [[PreparedText(text, plan) for text in probes] for plan in plans]
        self._expected = [_Expected(prepared, self._rows(reference, prepared)) for prepared in prepared_for]

    @property
    def layers(self) -> frozenset[int]:
        """The layers whose hidden states are compared: those that a request without options reads."""
        return frozenset[int]().union(*(expected.prepared[0].plan.reads for expected in self._expected))

    def smallest_cosine(self, transformer: Transformer, dtype: torch.dtype) -> float:
        """Return the smallest cosine between a row of the transformer, which runs in the dtype, and the reference.

        Raises ModelError if it is below MIN_COSINE, or if a row of the reference is not finite.
        """
        cosines = []
        for expected in self._expected:
            rows = self._finite_rows(transformer, expected)
            cosine = float(_cosines(rows, expected.rows).min())
            difference = float(np.abs(rows - expected.rows).max())
            names = "+".join(expected.prepared[0].plan.poolings)
            log.info("compared with float32 pooling=%s cosine=%.6f difference=%.2g", names, cosine, difference)
            if not cosine >= MIN_COSINE:  # also true for NaN
                raise ModelError(
                    f"{dtype} is too coarse for {names} of this model (cosine {cosine:.4f}): use -dtype float32"
                )
            cosines.append(cosine)
        return min(cosines)

    def cosine(self, transformer: Transformer) -> float:
        """Return the smallest cosine between a row of the transformer and of the reference, however small."""
        return min(
            float(_cosines(self._finite_rows(transformer, expected), expected.rows).min())
            for expected in self._expected
        )

    def _finite_rows(self, transformer: Transformer, expected: _Expected) -> _Matrix:
        rows = self._rows(transformer, expected.prepared)
        # A row that is not finite is never sent: it is computed again in float32.
        return np.where(np.isfinite(rows), rows, expected.rows)

    def _rows(self, transformer: Transformer, prepared: Sequence[PreparedText]) -> _Matrix:
        """Return the rows of all probes, (N, D). For NONE, each token has a row."""
        plan, budget = prepared[0].plan, Budget(_MICRO_BATCH_TOKENS)
        rows_of = computed(micro_batches(transformer, prepared, budget, hide_specials=self._hides_specials))
        if plan.is_sparse:
            return dense(rows_of, plan.width).astype(np.float64)
        rows = np.concatenate([rows.reshape(-1, plan.width) for rows in rows_of]).astype(np.float64)
        # The cosine of two single numbers is 1 or -1, so the numbers of all probes are compared as one row.
        return rows.T if plan.width == 1 else rows


def _cosines(rows: _Matrix, expected: _Matrix) -> _Matrix:
    """Return the cosine of each row with the expected row, (N,). Two rows that are both almost zero have 1."""
    norms, expected_norms = np.linalg.norm(rows, axis=1), np.linalg.norm(expected, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.minimum((rows * expected).sum(1) / (norms * expected_norms), 1.0)
    limit = _NEGLIGIBLE * expected_norms.max()
    return np.where((norms <= limit) & (expected_norms <= limit), 1.0, cosines)
