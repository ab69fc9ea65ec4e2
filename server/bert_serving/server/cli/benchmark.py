"""bert-serving-benchmark: measure servers on this machine."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """bert-serving-benchmark: measure servers on this machine. Returns 0, or 1 with one line of why not."""
    try:
        return _benchmark(argv)
    except KeyboardInterrupt:
        return 130  # as a shell says it; what was measured until then is in the file


def _benchmark(argv: list[str] | None) -> int:
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ..compat.benchmark.experiments import parse_plan
        from ..compat.benchmark.runner import BenchmarkError, run
    except ModuleNotFoundError as exc:  # the base install is the client alone
        sys.stderr.write(f"bert-serving-benchmark: {exc}; pip install 'bert-embedding-service[server]'\n")
        return 1
    try:
        run(parse_plan(argv))
    except BenchmarkError as exc:
        sys.stderr.write(f"bert-serving-benchmark: {exc}\n")
        return 1
    return 0
