"""The commands bert-serving-compare and bert-serving-distill."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

_EXTRA = "pip install 'bert-embedding-service[train]'"


def compare(argv: list[str] | None = None) -> int:
    """Compare two models. Returns the exit code: 0, or 1 after one line about a failure."""

    def run() -> None:
        from .comparison import compare, draw, table, write_json
        from .options import parse_compare

        job = parse_compare(argv)
        result = compare(job, say)
        sys.stdout.write(table(result) + "\n")
        if job.json_file is not None:
            write_json(result, job.json_file)
        if job.plot is not None:
            draw(result, job.plot)

    say = _speaker("bert-serving-compare")
    return _exit_code(run, say, "stopped")


def distill(argv: list[str] | None = None) -> int:
    """Train a student. Returns the exit code: 0, or 1 after one line about a failure."""

    def run() -> None:
        from .distillation import distill
        from .options import parse_distill

        distill(parse_distill(argv), say)

    say = _speaker("bert-serving-distill")
    return _exit_code(run, say, "stopped; the same command goes on from the last checkpoint")


def _exit_code(run: Callable[[], None], say: Callable[[str], None], stopped: str) -> int:
    from .errors import TrainError

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except ModuleNotFoundError as exc:
        say(f"{exc}; {_EXTRA}")
        return 1
    except MemoryError:
        say("there is not enough memory: give less texts")
        return 1
    except (TrainError, OSError, ValueError) as exc:
        say(" ".join(str(exc).split()))
        return 1
    except KeyboardInterrupt:
        say(stopped)
        return 130  # the usual exit code after Ctrl-C
    return 0


def _speaker(prog: str) -> Callable[[str], None]:
    def say(message: str) -> None:
        sys.stderr.write(f"{prog}: {message}\n")

    return say
