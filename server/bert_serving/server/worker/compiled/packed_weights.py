"""Linear layers as the operators store them. See native/products.cpp for the layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_GROUP_BYTES = 4
_LINE_BYTES = 64
_COLUMNS = 16
_BLOCK = 32


class LinearParts(NamedTuple):
    """A linear layer in bfloat16, float32 or 8-bit integers; without integers, the last three are empty.

    weight: packed. bias: (N,) float32. smooth: (K,), what each component of the input is multiplied by before it
    is rounded to an integer. scale: (N,), what an integer of a column stands for. correction: (N,), the sum of
    the column's integers, times its scale.
    """

    weight: Tensor
    bias: Tensor
    smooth: Tensor
    scale: Tensor
    correction: Tensor


def to_dtype(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> LinearParts:
    """Return the parts of a linear layer that computes in bfloat16 or float32. weight: (N, K). bias: (N,)."""
    nothing = torch.empty(0)
    return LinearParts(_packed(weight.to(dtype)), bias.float(), nothing, nothing, nothing)


def to_int8(weight: Tensor, bias: Tensor, highest: Tensor, alpha: float) -> LinearParts:
    """Return the parts of a linear layer that computes in 8-bit integers.

    A component of the input with large numbers is made smaller, and its weights larger, so that both lose about
    the same precision (SmoothQuant, Xiao et al. 2023). highest: the largest absolute numbers of the input, (K,).
    alpha: how much is moved to the weights, 0 to 1.
    """
    floor = max(1e-5, 0.01 * float(highest.max()))  # what is small in these texts may be large in others
    factors = highest.clamp_min(floor) ** alpha / weight.abs().amax(0).clamp_min(1e-5) ** (1 - alpha)
    weight = weight * factors
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    integers = torch.round(weight / scale[:, None]).to(torch.int8)
    return LinearParts(_packed(integers), bias.float(), 1 / factors, scale, integers.sum(1) * scale)


def _packed(weight: Tensor) -> Tensor:
    """Return a weight (N, K) in lines: (N / 16, K / group, 16, group), filled up with zeros."""
    size = weight.element_size()
    group, line = _GROUP_BYTES // size, _LINE_BYTES // size
    rows, depth = weight.shape
    filled = weight.new_zeros(-(-rows // _BLOCK) * _BLOCK, -(-depth // line) * line)
    filled[:rows, :depth] = weight
    return filled.view(-1, _COLUMNS, filled.shape[1] // group, group).transpose(1, 2).contiguous()
