"""What all benchmarks share: a clock, and the name of the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds that the call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_name() -> str:
    """Return the model name of the first CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
