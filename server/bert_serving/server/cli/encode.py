"""bert-serving-encode: the texts of files in, a file of vectors out."""

from __future__ import annotations

import sys

_WITH_BAD_ROWS = 3


def main(argv: list[str] | None = None) -> int:
    """Encode files. Returns the exit code: 0, or 1 after one line about a failure, or 3 if rows lack a vector."""
    try:
        return _encode(argv)
    except KeyboardInterrupt:
        _say("stopped; if the input is a file, the same command goes on from here")
        return 130  # the usual exit code after Ctrl-C


def _encode(argv: list[str] | None) -> int:
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ..files.errors import FileError
        from ..files.options import parse_job
        from ..files.run import encode_files
    except ModuleNotFoundError as exc:
        _say(f"{exc}; pip install 'bert-embedding-service[files]'")
        return 1
    try:
        outcome = encode_files(job := parse_job(argv), _say)
    except FileError as exc:
        _say(str(exc))
        return 1
    if outcome.num_cut:
        _say(f"{outcome.num_cut} of {outcome.num_rows} texts are longer than max_seq_len and were cut")
    if outcome.num_bad:
        reasons = f"{job.output}.errors.jsonl"
        _say(f"{outcome.num_bad} of {outcome.num_rows} rows lack a vector or a value; {reasons} says why")
        return _WITH_BAD_ROWS
    return 0


def _say(message: str) -> None:
    sys.stderr.write(f"bert-serving-encode: {message}\n")
