"""Pooling strategies: each turns the token vectors of a text into one vector.

The texts of a micro-batch lie end to end in `hidden`, (T, H) float32, without padding; `Segments` holds the row
numbers of each text. Each strategy returns (B, H) float32; REDUCE_MEAN_MAX returns (B, 2H). Sources:
bert-as-service's graph.py; sentence-transformers' Pooling for MEAN_SQRT_LEN and WEIGHTED_MEAN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


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
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.rows)])])
        return ends - self.starts

    @property
    def positions(self) -> Tensor:
        """For each of `rows`, the position of its token in the text, from 0."""
        return self.rows - torch.repeat_interleave(self.origin, self.lengths)


def whole_segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Return segments that pool all rows of texts that lie end to end. lengths: numbers of tokens of the texts."""
    ends = list(accumulate(lengths))
    starts = torch.tensor([0, *ends[:-1]], device=device)
    last = torch.tensor(ends, device=device) - 1
    return Segments(torch.arange(ends[-1], device=device), starts, starts, last, starts)


def partial_segments(
    rows: Sequence[Sequence[int]],
    *,
    first: Sequence[int],
    last: Sequence[int],
    origin: Sequence[int],
    device: torch.device,
) -> Segments:
    """Return segments that pool the given rows of each text. The mean and maximum of no rows are zeros."""
    starts = [0, *accumulate(map(len, rows))][:-1]
    flat = [i for of_text in rows for i in of_text]
    return Segments(
        *(torch.tensor(x, dtype=torch.int64, device=device) for x in (flat, starts, first, last, origin))
    )


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
    sums.index_add_(0, torch.repeat_interleave(segments.lengths), weights)
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
