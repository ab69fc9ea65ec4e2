"""Token vectors to one vector a text.

The texts of a batch lie end to end in `hidden`, (T, H) float32, without padding; `Segments` says which rows
belong to which text. Each strategy returns (B, H) float32, or a multiple of H. Sources: bert-as-service's
graph.py for the upper-case names, sentence-transformers' Pooling for the last two.
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
    """Rows of T that are pooled together, for each of B texts.

    rows: the row numbers, text after text. starts: (B,), where each text begins in `rows`. first, last: (B,),
    the rows that FIRST_TOKEN and LAST_TOKEN take. origin: (B,), the row from which positions are counted.
    """

    rows: Tensor
    starts: Tensor
    first: Tensor
    last: Tensor
    origin: Tensor

    @property
    def lengths(self) -> Tensor:
        """Return (B,), the number of rows of each text."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.rows)])])
        return ends - self.starts

    @property
    def positions(self) -> Tensor:
        """Return for each of `rows` its distance from its text's origin."""
        return self.rows - torch.repeat_interleave(self.origin, self.lengths)


def whole_segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Return segments of the given lengths, end to end, that are pooled with every row."""
    ends = list(accumulate(lengths))
    starts = torch.tensor([0, *ends[:-1]], device=device)
    last = torch.tensor(ends, device=device) - 1
    return Segments(torch.arange(ends[-1], device=device), starts, starts, last, starts)


def segments(
    rows: Sequence[Sequence[int]],
    *,
    first: Sequence[int],
    last: Sequence[int],
    origin: Sequence[int],
    device: torch.device,
) -> Segments:
    """Return segments of any rows. A text may have none: its mean and maximum are zero."""
    starts = [0, *accumulate(map(len, rows))][:-1]
    flat = [i for of_text in rows for i in of_text]
    return Segments(
        *(torch.tensor(x, dtype=torch.int64, device=device) for x in (flat, starts, first, last, origin))
    )


def mean(hidden: Tensor, of: Segments) -> Tensor:
    """Mean of the token vectors. Reimers & Gurevych 2019, section 3."""
    return embedding_bag(of.rows, hidden, of.starts, mode="mean")


def maximum(hidden: Tensor, of: Segments) -> Tensor:
    """Largest value of each component over the tokens."""
    # The maximum alone would pass over a NaN, and give a vector that looks sound.
    return embedding_bag(of.rows, hidden, of.starts, mode="max") + 0 * mean(hidden, of)


def mean_and_max(hidden: Tensor, of: Segments) -> Tensor:
    """Mean, then maximum: (B, 2H)."""
    return torch.cat([mean(hidden, of), maximum(hidden, of)], dim=1)


def first_token(hidden: Tensor, of: Segments) -> Tensor:
    """The first token's vector: [CLS] for BERT."""
    return hidden[of.first]


def last_token(hidden: Tensor, of: Segments) -> Tensor:
    """The last token's vector: [SEP] for BERT."""
    return hidden[of.last]


def mean_sqrt_len(hidden: Tensor, of: Segments) -> Tensor:
    """Sum of the token vectors over the square root of their number."""
    return mean(hidden, of) * of.lengths[:, None].sqrt()


def weighted_mean(hidden: Tensor, of: Segments) -> Tensor:
    """Mean of the token vectors weighted by position 1, 2, ... Muennighoff 2022 (SGPT), section 3.1."""
    weights = (of.positions + 1).to(hidden.dtype)
    total = embedding_bag(of.rows, hidden, of.starts, mode="sum", per_sample_weights=weights)
    sums = torch.zeros(len(of.starts), dtype=hidden.dtype, device=hidden.device)
    sums.index_add_(0, torch.repeat_interleave(of.lengths), weights)
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
