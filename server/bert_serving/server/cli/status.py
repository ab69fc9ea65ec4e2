"""bert-serving-status: show what a server does."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """bert-serving-status: show what a server does. Returns 0, or 1 with one line of why there is nothing."""
    try:
        return _status(argv)
    except KeyboardInterrupt:
        return 0  # the way to end -watch


def _status(argv: list[str] | None) -> int:
    import argparse

    from .status_table import StatusError, show

    parser = argparse.ArgumentParser(prog="bert-serving-status", description="Show what a running server does.")
    parser.add_argument("-ip", "--ip", default="localhost", help="its address (default: localhost)")
    parser.add_argument(
        *("-port", "--port", "-port_in", "-port_data"), type=int, default=5555, help="its port for requests"
    )
    parser.add_argument(
        *("-port_out", "--port_out", "-port_result"), type=int, default=5556, help="its port for results"
    )
    parser.add_argument(
        "-watch", "--watch", type=float, metavar="SECONDS", help="refresh so often, until Ctrl-C; default: once"
    )
    parser.add_argument("-json", "--json", action="store_true", help="all that the server tells, as JSON")
    args = parser.parse_args(argv)
    if args.watch is not None and not args.watch > 0:
        parser.error(f"-watch must be more than 0 seconds, got {args.watch:g}")
    try:
        show(args.ip, args.port, args.port_out, watch_s=args.watch, as_json=args.json)
    except StatusError as exc:
        sys.stderr.write(f"bert-serving-status: {exc}\n")
        return 1
    return 0
