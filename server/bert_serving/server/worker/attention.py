"""Attention within each sequence of a packed row, plugged into Transformers' own model code.

The models ask Transformers' registry for their attention function by name. `PACKED` names ours: it sees one
row of T tokens and the groups that lie in it (see packing), and attends within each sequence. The models'
mask function of the same name makes no mask, since there is no padding to hide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from .packing import Group

PACKED = "packed"
PADDED = "sdpa"
REFERENCE = "eager"


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What lies in a packed row: its groups, and which tokens others may see, (T,) bool; None: all.

    ends: where the sequences begin and end, (B + 1,) int32 on the GPU, for one kernel over all of them; None:
    attention goes group by group.
    """

    groups: Sequence[Group]
    visible: Tensor | None = None
    ends: Tensor | None = None


_row: ContextVar[PackedRow] = ContextVar("the packed row")


@contextmanager
def packed_row(row: PackedRow) -> Iterator[None]:
    """Let `packed_attention` know the row that a forward pass in this context works on."""
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)


def register() -> None:
    """Make PACKED known to Transformers. May be called again."""
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
    **_: Any,
) -> tuple[Tensor, None]:
    """Return (attention output, None), the output as (1, T, N, D).

    query, key, value: (1, N, T, D), as Transformers' models hand them over. sliding_window: a token sees
    those that are fewer than so many tokens away, on either side.
    """
    row = _row.get()
    # (T, N, D): in memory the tokens are outermost, so that a group is a view. Rotary embeddings may have
    # been applied in float32.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if row.ends is not None:
        return _varlen(q, k, v, row, scaling, sliding_window)[None], None
    if not q.is_cuda:  # float32 is both faster here and closer to the reference
        q, k, v = q.float(), k.float(), v.float()
    output = torch.empty(q.shape, dtype=value.dtype, device=q.device)  # (T, N, D)
    for group in row.groups:
        rows = slice(group.start, group.stop)
        shape = (group.count, group.length, *q.shape[1:])
        mask = _window_mask(group.length, sliding_window, q.device)
        if row.visible is not None:
            seen = row.visible[rows].view(group.count, 1, 1, group.length)
            mask = seen if mask is None else mask & seen
        part = scaled_dot_product_attention(
            q[rows].view(shape).transpose(1, 2),  # (B, N, T, D)
            k[rows].view(shape).transpose(1, 2),
            v[rows].view(shape).transpose(1, 2),
            attn_mask=mask,
            scale=scaling,
        )
        output[rows].view(shape).copy_(part.transpose(1, 2))
    return output[None], None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return a (T, T) mask, True = visible, or None where a sequence is no longer than its window."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() < window


def sequence_ends(groups: Sequence[Group], device: torch.device) -> Tensor:
    """Return where the sequences of a packed row begin and end, (B + 1,) int32 on the device."""
    lengths = [group.length for group in groups for _ in range(group.count)]
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


def _varlen(q: Tensor, k: Tensor, v: Tensor, row: PackedRow, scaling: float | None, window: int | None) -> Tensor:
    """Return the attention output (T, N, D) by one kernel for all sequences; half precision on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(group.length for group in row.groups)
    reach = -1 if window is None else window - 1
    ends = row.ends
    assert ends is not None
    output = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(reach, reach))
    assert isinstance(output, Tensor)
    return output


def pad(
    sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (input_ids, attention_mask), both (B, T) int64 on the device; mask 1 = real token."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[pad_id] * (width - len(s))] for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
