"""bert-serving-encode: the texts of files in, a file of vectors out."""

from __future__ import annotations

import sys

_WITH_BAD_ROWS = 3


def main(argv: list[str] | None = None) -> int:
    """Encode files. Returns the exit code: 0, or 1 after one line about a failure, or 3 if rows have no vector."""
    try:
        return _encode(argv)
    except KeyboardInterrupt:
        sys.stderr.write("\nbert-serving-encode: stopped; the same command goes on from here\n")
        return 130  # the usual exit code after Ctrl-C


def _encode(argv: list[str] | None) -> int:
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ..files.errors import FileError
        from ..files.options import parse_job
        from ..files.run import encode_files
    except ModuleNotFoundError as exc:
        sys.stderr.write(f"bert-serving-encode: {exc}; pip install 'bert-embedding-service[files]'\n")
        return 1
    try:
        outcome = encode_files(job := parse_job(argv))
    except FileError as exc:
        sys.stderr.write(f"bert-serving-encode: {exc}\n")
        return 1
    if outcome.num_bad:
        sys.stderr.write(
            f"bert-serving-encode: {outcome.num_bad} of {outcome.num_rows} rows have no vector; "
            f"{job.output}.errors.jsonl says why\n"
        )
        return _WITH_BAD_ROWS
    return 0
