"""Copies arrays between the host and the device that computes.

While the host waits for a GPU, it prepares no work for it. So everything that a micro-batch needs travels to the
GPU in one copy from pinned memory, for which the host does not wait. The host waits for the GPU only at the end of
a batch. On the CPU, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = "npt.NDArray[Any]"

_ALIGNMENT = 16  # bytes; kernels read several numbers at a time from addresses that are multiples of this


def to_device(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors on the device. To a GPU, all of them travel in one copy, which does not wait.

    On the CPU, the tensors share the memory of the arrays.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    return unpacked(moved_together(arrays, device), tensors)


def moved_together(arrays: Sequence[Array], device: torch.device) -> Tensor:
    """Return the bytes of all arrays on a GPU, for `unpacked`. They travel in one copy, which does not wait."""
    # PyTorch does not reuse pinned memory before the copy from it has ended.
    return torch.from_numpy(packed(arrays)).pin_memory().to(device, non_blocking=True)


def packed(arrays: Sequence[Array]) -> Array:
    """Return the bytes of all arrays, (number of bytes,) uint8, for `unpacked`. They are not all empty."""
    starts = _starts([array.nbytes for array in arrays])
    together = np.empty(starts[-1], np.uint8)
    for array, start in zip(arrays, starts, strict=False):
        together[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    return together


def unpacked(together: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the packed arrays as views of `together`. like: tensors of the same shapes and dtypes."""
    starts = _starts([tensor.nbytes for tensor in like])
    return [
        together[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, start in zip(like, starts, strict=False)
    ]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where arrays of these numbers of bytes begin if they are packed, and where the last one ends."""
    return [0, *accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]


def start_to_host(tensor: Tensor) -> Tensor:
    """Return the tensor on the host. Its values are valid after the next call of `to_host` or `wait_for`."""
    return tensor.to("cpu", non_blocking=True)  # PyTorch puts the result of such a copy into pinned memory


def to_host(tensors: Sequence[Tensor], device: torch.device) -> list[Array]:
    """Return the values of tensors of one dtype, when the device has computed them. They travel in one copy."""
    if device.type == "cpu":
        return [as_array(tensor) for tensor in tensors]
    if not tensors:
        return []
    flat = [tensor.reshape(-1) for tensor in tensors]
    moved = start_to_host(torch.cat(flat))
    wait_for(device)
    parts = np.split(as_array(moved), [*accumulate(map(len, flat))][:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=False)]


def wait_for(device: torch.device) -> None:
    """Return when the device has done everything that this thread has asked it to do."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def as_array(tensor: Tensor) -> Array:
    """Return the values of a tensor on the host as an array that shares its memory."""
    array: Array = tensor.numpy()
    return array
