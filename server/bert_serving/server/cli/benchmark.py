"""bert-serving-benchmark: measure the speed of servers on this machine."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code: 0, or 1 after one line that says what failed."""
    try:
        return _benchmark(argv)
    except KeyboardInterrupt:
        return 130  # the usual exit code after Ctrl-C; the results so far are in the file


def _benchmark(argv: list[str] | None) -> int:
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ..compat.benchmark.experiments import parse_plan
        from ..compat.benchmark.runner import BenchmarkError, run
    except ModuleNotFoundError as exc:  # without the extra "server", only the client is installed
        sys.stderr.write(f"bert-serving-benchmark: {exc}; pip install 'bert-embedding-service[server]'\n")
        return 1
    try:
        run(parse_plan(argv))
    except BenchmarkError as exc:
        sys.stderr.write(f"bert-serving-benchmark: {exc}\n")
        return 1
    return 0
