"""bert-serving-terminate: stop a server."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Stop a server. Returns the exit code: 0 if it has stopped, or 1 after one line that says what failed."""
    from ..compat.termination import TerminateError, terminate_parser, terminate_server

    args = terminate_parser().parse_args(argv)
    try:
        terminate_server(args.ip, args.port, timeout_s=args.timeout / 1000, curve_dir=args.curve_dir)
    except TerminateError as exc:
        sys.stderr.write(f"bert-serving-terminate: {exc}\n")
        return 1
    sys.stdout.write(f"the server at {args.ip}:{args.port} has stopped\n")
    return 0
