"""Token vectors to one vector a text.

Each strategy is a function of hidden (B, T, H) float32 and mask (B, T) float32, 1 = real token, and
returns (B, H) or a multiple of H. Padding never changes a result. Sources: bert-as-service's graph.py
for the upper-case names, sentence-transformers' Pooling for the lower-case ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token vectors. Reimers & Gurevych 2019, section 3."""
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)


def maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    """Largest value of each component over the tokens."""
    return hidden.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


def mean_and_max(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean, then maximum: (B, 2H)."""
    return torch.cat([mean(hidden, mask), maximum(hidden, mask)], dim=1)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first token's vector: [CLS] for BERT."""
    return hidden[:, 0]


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last real token's vector: [SEP] for BERT."""
    last = mask.sum(1).long() - 1  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sum of the token vectors over the square root of their number."""
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9).sqrt()


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token vectors weighted by position 1, 2, ... Muennighoff 2022 (SGPT), section 3.1."""
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return mean(hidden, weights)


Strategy = Callable[[Tensor, Tensor], Tensor]

STRATEGIES: dict[str, Strategy] = {
    "REDUCE_MEAN": mean,
    "REDUCE_MAX": maximum,
    "REDUCE_MEAN_MAX": mean_and_max,
    "CLS_TOKEN": first_token,
    "FIRST_TOKEN": first_token,
    "SEP_TOKEN": last_token,
    "LAST_TOKEN": last_token,
    "mean": mean,
    "max": maximum,
    "cls": first_token,
    "lasttoken": last_token,
    "mean_sqrt_len_tokens": mean_sqrt_len,
    "weightedmean": weighted_mean,
}


def pool(hidden: Tensor, mask: Tensor, names: Sequence[str], *, normalize: bool) -> Tensor:
    """Return the named poolings of the token vectors side by side, as float32 (B, D).

    hidden: (B, T, H) of any float type; the sums run in float32. mask: (B, T), 1 = real token.
    normalize: divide each row by its L2 norm.
    """
    hidden, mask = hidden.float().masked_fill(mask[..., None] == 0, 0.0), mask.float()
    rows = torch.cat([STRATEGIES[name](hidden, mask) for name in names], dim=1)
    return torch.nn.functional.normalize(rows, dim=1) if normalize else rows
