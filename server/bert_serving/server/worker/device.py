"""Chooses what forward passes run on: device, dtype, micro-batch size, threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ..model.errors import ModelError

_CGROUP = Path("/sys/fs/cgroup")

# Micro-batches of this size keep the activations in a CPU's caches (1,000 to 2,000 tokens were fastest), and a
# small request waits for one of them. A GPU is fastest with as many tokens as possible.
CPU_MICRO_BATCH_TOKENS = 1024
_TRIAL_TOKENS = (1024, 4096)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MEMORY_SHARE = 0.8  # part of the free memory to use; the rest is for fragmentation and other processes


def pick_device(device: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda:N". Raises ModelError for a GPU that does not exist."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as exc:
        raise ModelError(f"device must be auto, cpu or cuda:N, got {device!r}") from exc
    if picked.type not in ("cpu", "cuda"):
        raise ModelError(f"device must be auto, cpu or cuda:N, got {device!r}")
    if picked.type == "cuda" and (picked.index or 0) >= count:
        seen = f"{count} GPUs" if count else "no GPU"
        raise ModelError(f"GPU {picked.index or 0} does not exist: PyTorch {torch.__version__} sees {seen}")
    return picked


def every_device() -> list[str]:
    """Return the names of all GPUs, or "cpu" if there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or ["cpu"]


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype with this name; "auto": the fastest that the device supports in hardware.

    "int8": what is not in 8-bit integers is in bfloat16, or in float32 if the processor has no bfloat16. Raises
    ModelError if the device cannot compute so.
    """
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype == "int8":
        if device.type != "cpu":
            raise ModelError(f"dtype int8 runs on the CPU only, and the device is {device}")
        if not torch.cpu._is_vnni_supported():
            raise ModelError("dtype int8 needs a CPU with AVX-512 VNNI: use -dtype auto")
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    if dtype != "auto":
        raise ModelError(f"dtype must be one of auto, {', '.join(_DTYPES)}, int8, got {dtype!r}")
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def fitting_tokens(forward: Callable[[int], object], max_tokens: int, device: torch.device) -> int:
    """Return how many tokens of a forward pass fit into the free GPU memory, at most max_tokens.

    forward: runs a forward pass of the given number of tokens.
    """
    peaks = []
    for tokens in _TRIAL_TOKENS:
        forward(tokens)  # not measured, because some memory is allocated only once
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward(tokens)
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    per_token = max(1.0, (peaks[1] - peaks[0]) / (_TRIAL_TOKENS[1] - _TRIAL_TOKENS[0]))
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return max(_TRIAL_TOKENS[0], min(max_tokens, int(free * _MEMORY_SHARE / per_token)))


def device_bytes(device: torch.device) -> int | None:
    """Return the GPU memory that this process has taken with PyTorch; None if the device is no GPU.

    This includes what is kept for later tensors, since no other process can use it. It does not include what CUDA
    itself takes.
    """
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


class Pace:
    """Lets a GPU be at most one micro-batch behind the thread that sends it micro-batches.

    A GPU computes later than it is asked to. Without this limit, all micro-batches of a long text would wait in
    the GPU's queue, and those of another text could only follow them. With no lag at all, the GPU would be idle
    while the next micro-batch is prepared. On a CPU, there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Call this after each micro-batch. Returns when the GPU has computed the micro-batch before it."""
        if self._device.type != "cuda":
            return
        previous, self._last = self._last, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last.record(torch.cuda.current_stream(self._device))
        if previous is not None:
            previous.synchronize()


def allowed_cpus() -> int:
    """Return how many CPUs this process may keep busy: the smaller of its affinity mask and its cgroup's quota.

    If a container runs more threads than its quota allows, the kernel pauses all of its threads.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    return cpus if quota is None else max(1, min(cpus, round(quota)))


def _cgroup_cpus() -> float | None:
    try:  # cgroup version 2: quota and period in microseconds, such as "150000 100000" or "max 100000"
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # cgroup version 1: -1 means no quota
            quota = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() else None


def _cpu_has_bfloat16() -> bool:
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
