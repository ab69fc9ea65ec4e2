"""Pooling strategies: each turns the token vectors of a text into one vector.

The texts of a micro-batch lie end to end in `hidden`, (T, H) float32, without padding; `Segments` holds the row
numbers of each text. Each strategy returns (B, H) float32; REDUCE_MEAN_MAX returns (B, 2H). Sources:
bert-as-service's graph.py; sentence-transformers' Pooling for MEAN_SQRT_LEN and WEIGHTED_MEAN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from .transfers import Array, to_device


@dataclass(frozen=True, slots=True)
class Segments:
    """Which of the T rows are pooled together, for each of B texts. All fields are int64.

    rows: the row numbers, text after text. starts: (B,), where each text begins in `rows`. first, last: (B,), the
    rows that FIRST_TOKEN and LAST_TOKEN return. origin: (B,), the row of each text's first token; positions are
    counted from this row.
    """

    rows: Tensor
    starts: Tensor
    first: Tensor
    last: Tensor
    origin: Tensor

    @property
    def lengths(self) -> Tensor:
        """The number of pooled rows of each text, (B,)."""
        ends = pad(self.starts[1:], (0, 1), value=len(self.rows))
        return ends - self.starts

    @property
    def positions(self) -> Tensor:
        """For each of `rows`, the position of its token in the text, from 0."""
        # Without output_size, a GPU would have to tell the host the sum of the lengths.
        return self.rows - torch.repeat_interleave(self.origin, self.lengths, output_size=len(self.rows))


class SegmentArrays(NamedTuple):
    """The fields of Segments, as arrays on the host."""

    rows: Array
    starts: Array
    first: Array
    last: Array
    origin: Array

    def on(self, device: torch.device) -> Segments:
        """Return the segments on the device."""
        return Segments(*to_device(self, device))


def whole_segments(lengths: Sequence[int]) -> SegmentArrays:
    """Return segments that pool all rows of texts that lie end to end. lengths: numbers of tokens of the texts."""
    bounds = np.array([0, *accumulate(lengths)], np.int64)
    starts = bounds[:-1]
    return SegmentArrays(np.arange(bounds[-1]), starts, starts, bounds[1:] - 1, starts)


def partial_segments(
    rows: Sequence[Sequence[int]], *, first: Sequence[int], last: Sequence[int], origin: Sequence[int]
) -> SegmentArrays:
    """Return segments that pool the given rows of each text. The mean and maximum of no rows are zeros."""
    starts = [0, *accumulate(map(len, rows))][:-1]
    flat = [i for of_text in rows for i in of_text]
    return SegmentArrays(*(np.array(x, np.int64) for x in (flat, starts, first, last, origin)))


def mean(hidden: Tensor, segments: Segments) -> Tensor:
    """Mean of the token vectors. Reimers & Gurevych 2019, section 3."""
    return embedding_bag(segments.rows, hidden, segments.starts, mode="mean")


def maximum(hidden: Tensor, segments: Segments) -> Tensor:
    """Largest value of each component over the tokens."""
    # The maximum of embedding_bag ignores NaN. Adding 0 * mean gives NaN for a NaN or infinite token.
    return embedding_bag(segments.rows, hidden, segments.starts, mode="max") + 0 * mean(hidden, segments)


def mean_and_max(hidden: Tensor, segments: Segments) -> Tensor:
    """Mean and maximum, concatenated: (B, 2H)."""
    return torch.cat([mean(hidden, segments), maximum(hidden, segments)], dim=1)


def first_token(hidden: Tensor, segments: Segments) -> Tensor:
    """The first token's vector: [CLS] for BERT."""
    return hidden[segments.first]


def last_token(hidden: Tensor, segments: Segments) -> Tensor:
    """The last token's vector: [SEP] for BERT."""
    return hidden[segments.last]


def mean_sqrt_len(hidden: Tensor, segments: Segments) -> Tensor:
    """Sum of the token vectors divided by the square root of their number."""
    return mean(hidden, segments) * segments.lengths[:, None].sqrt()


def weighted_mean(hidden: Tensor, segments: Segments) -> Tensor:
    """Mean of the token vectors weighted by position 1, 2, ... Muennighoff 2022 (SGPT), section 3.1."""
    weights = (segments.positions + 1).to(hidden.dtype)  # (number of pooled rows,)
    total = embedding_bag(segments.rows, hidden, segments.starts, mode="sum", per_sample_weights=weights)
    sums = torch.zeros(len(segments.starts), dtype=hidden.dtype, device=hidden.device)  # (B,)
    owners = torch.repeat_interleave(segments.lengths, output_size=len(weights))  # the text of each pooled row
    sums.index_add_(0, owners, weights)
    return total / sums[:, None].clamp(min=1.0)


Strategy = Callable[[Tensor, Segments], Tensor]

STRATEGIES: dict[str, Strategy] = {
    "REDUCE_MEAN": mean,
    "REDUCE_MAX": maximum,
    "REDUCE_MEAN_MAX": mean_and_max,
    "CLS_TOKEN": first_token,
    "FIRST_TOKEN": first_token,
    "SEP_TOKEN": last_token,
    "LAST_TOKEN": last_token,
    "MEAN_SQRT_LEN": mean_sqrt_len,
    "WEIGHTED_MEAN": weighted_mean,
}
