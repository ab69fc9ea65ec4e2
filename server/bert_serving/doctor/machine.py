"""What this machine is: processor, memory, GPUs, limits, and the versions of what computes."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from ..server.worker.device import allowed_cpus

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # that change what is chosen
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_MEMORY = (  # versions 2 and 1: the limit, what is used, and the part of it that the kernel can take back
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_NVIDIA_SMI_S = 10.0


@dataclass(frozen=True)
class Machine:
    """Facts that no server changes. Memory in bytes.

    cores: those that a process may use, by its affinity and the quota of its container. all_cores: those of
    the whole host. load: how many threads of the whole host ran or waited for a core, mean of the last minute.
    driver_gpus: the GPUs that NVIDIA's driver lists; torch_gpus: those that PyTorch can use.
    max_files: the hard limit, to which a server raises its own limit; None: there is none.
    """

    processor: str
    flags: tuple[str, ...]
    cores: int
    all_cores: int
    load: float
    memory: int
    free_memory: int
    driver_gpus: tuple[str, ...]
    torch_gpus: tuple[str, ...]
    max_files: int | None
    versions: dict[str, str]


def this_machine() -> Machine:
    """Return the facts of this machine, as they are now."""
    processor, flags = _processor()
    host = psutil.virtual_memory()
    memory, free = memory_within(_CGROUP, host.total, host.available)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(
        processor=processor,
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        cores=allowed_cpus(),
        all_cores=os.cpu_count() or 1,
        load=os.getloadavg()[0],
        memory=memory,
        free_memory=free,
        driver_gpus=_driver_gpus(),
        torch_gpus=tuple(torch.cuda.get_device_name(i) for i in range(count)),
        max_files=_max_files(),
        versions={
            "Python": platform.python_version(),
            "bert-embedding-service": version("bert-embedding-service"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    )


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine(), set(flags[1].split()) if flags else set()


def _max_files() -> int | None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _driver_gpus() -> tuple[str, ...]:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in found.stdout.splitlines() if line.strip())


def memory_within(cgroup: Path, total: int, available: int) -> tuple[int, int]:
    """Return the memory that this process and its container may use, and what of it is free.

    cgroup: the folder of the container's limits. total, available: memory of the host.
    """
    for limit_file, used_file, cache_name in _CGROUP_MEMORY:
        try:
            limit = int((cgroup / limit_file).read_text())
            used = int((cgroup / used_file).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < total:
            cache = _memory_stat((cgroup / limit_file).with_name("memory.stat"), cache_name)
            return limit, max(0, min(limit - used + cache, available))
    return total, available


def _memory_stat(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
