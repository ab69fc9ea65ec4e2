"""Which position attends to which. Sequences of a micro-batch lie side by side, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pad(
    sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (input_ids, attention_mask), both (B, T) int64 on the device; mask 1 = real token."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[pad_id] * (width - len(s))] for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
