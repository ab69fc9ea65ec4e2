"""A device's name, a clock that waits until the device is done, and the time of a model's matrix products."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from bert_serving.server.worker.linear import PrepackedLinear

from benchmarks.common import cpu_name, seconds


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model: the widths of its hidden states and its feed-forward layers, and its number of layers."""

    hidden: int
    inner: int
    layers: int


def device_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that the call takes, including the work that it queues on a CUDA device."""

    def run_to_the_end() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return seconds(run_to_the_end)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the CPU with its architecture and PyTorch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {platform.machine()}, {torch.get_num_threads()} threads"


@torch.inference_mode()
def matmul_seconds(dtype: torch.dtype, num_tokens: int, shape: Shape, device: torch.device) -> float:
    """Return the seconds that the model's matrix products take for num_tokens, at the best rate measured."""
    row = 2048 if device.type == "cpu" else 16384  # tokens in a micro-batch of the encoder
    total = 0.0
    sizes = ((shape.hidden, shape.hidden, 4), (shape.hidden, shape.inner, 1), (shape.inner, shape.hidden, 1))
    for width_in, width_out, count in sizes:
        layer = torch.nn.Linear(width_in, width_out, bias=False, device=device, dtype=dtype)
        ways: list[torch.nn.Module] = [layer, *([PrepackedLinear(layer, dtype)] if device.type == "cpu" else [])]
        x = torch.randn(row, width_in, dtype=dtype, device=device)
        times = [device_seconds(partial(way, x), device) for way in ways for _ in range(12)]
        total += min(times) * count
    return total * shape.layers * num_tokens / row
