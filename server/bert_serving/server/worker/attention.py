"""Attention within each sequence of a packed row, used by Transformers' model code.

Transformers' models look up their attention function by name. `PACKED` is the name of `packed_attention`, which
gets the whole packed row (see packing.py) and attends within each sequence. The mask function registered under the
same name returns no mask, since there is no padding to hide.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from .packing import Group
from .transfers import Array

PACKED = "packed"
PADDED = "sdpa"
REFERENCE = "eager"


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What `packed_attention` must know about a packed row of T tokens and B sequences.

    visible: (T,) bool, False for tokens that no token may attend to; None: all are visible. cu_seqlens: the
    cumulative lengths of the sequences, (B + 1,) int32 on the GPU, for one kernel call over all sequences; None:
    attention runs group by group.
    """

    groups: Sequence[Group]
    visible: Tensor | None = None
    cu_seqlens: Tensor | None = None


_current_row: ContextVar[PackedRow] = ContextVar("current packed row")


@contextmanager
def packed_row(row: PackedRow) -> Iterator[None]:
    """Make the row known to `packed_attention` for the forward passes within this context."""
    token = _current_row.set(row)
    try:
        yield
    finally:
        _current_row.reset(token)


def register() -> None:
    """Register PACKED with Transformers. May be called more than once."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Return the attention output, (1, T, N, D), and None in place of the attention weights.

    query, key, value: (1, N, T, D), as Transformers' models pass them. sliding_window: a token attends to tokens
    that are less than this number of positions away, on either side.
    """
    row = _current_row.get()
    # The token dimension comes first, so that a group's tokens can be viewed as (B, T, N, D) without a copy.
    # Rotary embeddings may have turned queries and keys into float32, so both get the dtype of the values.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (T, N, D)
    if row.cu_seqlens is not None:
        return _varlen(q, k, v, row, scaling, sliding_window)[None], None
    if not q.is_cuda:  # on the CPU float32 is faster here, and closer to the reference
        q, k, v = q.float(), k.float(), v.float()
    output = torch.empty(q.shape, dtype=value.dtype, device=q.device)  # (T, N, D)
    for group in row.groups:
        rows = slice(group.start, group.stop)
        shape = (group.count, group.length, *q.shape[1:])  # (B, T, N, D), B and T of this group
        mask = _window_mask(group.length, sliding_window, q.device)  # (T, T)
        if row.visible is not None:
            visible = row.visible[rows].view(group.count, 1, 1, group.length)  # (B, 1, 1, T)
            mask = visible if mask is None else mask & visible
        attended = scaled_dot_product_attention(
            q[rows].view(shape).transpose(1, 2),  # (B, N, T, D)
            k[rows].view(shape).transpose(1, 2),
            v[rows].view(shape).transpose(1, 2),
            attn_mask=mask,
            scale=scaling,
        )
        output[rows].view(shape).copy_(attended.transpose(1, 2))  # (B, T, N, D)
    return output[None], None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return a (T, T) bool mask, True = visible; None if the whole sequence fits into the window."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() < window


def cumulative_lengths(groups: Sequence[Group]) -> Array:
    """Return the cumulative lengths of a packed row's sequences, starting with 0: (B + 1,) int32."""
    lengths = [group.length for group in groups for _ in range(group.count)]
    return np.array([0, *accumulate(lengths)], np.int32)


def _varlen(q: Tensor, k: Tensor, v: Tensor, row: PackedRow, scaling: float | None, window: int | None) -> Tensor:
    """Return the attention output (T, N, D), computed by one kernel call. Works only on CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(group.length for group in row.groups)
    reach = -1 if window is None else window - 1  # tokens visible on each side; -1: all
    cu_seqlens = row.cu_seqlens
    assert cu_seqlens is not None
    options: dict[str, Any] = {"num_splits": 1} if _takes_num_splits() else {}
    output = varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scaling, window_size=(reach, reach), **options
    )
    assert isinstance(output, Tensor)
    return output


@cache
def _takes_num_splits() -> bool:
    """Return whether `varlen_attn` has the argument num_splits. Older versions of PyTorch lack it.

    With one split, the order in which the kernel adds up the values of a sequence does not depend on the longest
    sequence of the row. So a text has the same vector alone and in any company.
    """
    from torch.nn.attention.varlen import varlen_attn

    return "num_splits" in inspect.signature(varlen_attn).parameters


def pad(sequences: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Array, Array]:
    """Return (input_ids, attention_mask), both (B, T) int64; mask 1 = real token, 0 = padding."""
    lengths = [len(s) for s in sequences]
    is_real = np.arange(max(lengths)) < np.array(lengths)[:, None]  # (B, T)
    ids = np.full(is_real.shape, pad_id, np.int64)
    ids[is_real] = np.fromiter(chain.from_iterable(sequences), np.int64)
    return ids, is_real.astype(np.int64)
