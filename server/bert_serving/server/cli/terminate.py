"""bert-serving-terminate: stop a server."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """bert-serving-terminate: stop a server. Returns 0 when it did stop, else 1 with one line of why."""
    from ..compat.termination import TerminateError, terminate_parser, terminate_server

    args = terminate_parser().parse_args(argv)
    try:
        terminate_server(args.ip, args.port, timeout_s=args.timeout / 1000)
    except TerminateError as exc:
        sys.stderr.write(f"bert-serving-terminate: {exc}\n")
        return 1
    sys.stdout.write(f"the server at {args.ip}:{args.port} has stopped\n")
    return 0
