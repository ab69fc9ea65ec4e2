"""bert-serving-status: show the status of a server."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Show the status of a server. Returns the exit code: 0, or 1 after one line that says what failed."""
    try:
        return _status(argv)
    except KeyboardInterrupt:
        return 0  # Ctrl-C is the way to end -watch


def _status(argv: list[str] | None) -> int:
    import argparse

    from .status_table import StatusError

    parser = argparse.ArgumentParser(
        prog="bert-serving-status", description="Show the status of a running server."
    )
    parser.add_argument("-ip", "--ip", default="localhost", help="address of the server (default: localhost)")
    parser.add_argument(
        "-port", "--port", "-port_in", "-port_data", type=int, default=5555, help="the server's port for requests"
    )
    parser.add_argument(
        "-port_out", "--port_out", "-port_result", type=int, default=5556, help="the server's port for replies"
    )
    parser.add_argument(
        "-watch",
        "--watch",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SECONDS",
        help="show the status again every SECONDS seconds (1 if left out), until Ctrl-C or q: in a terminal as a "
        "dashboard, if the extra `watch` is installed; default: show it once",
    )
    parser.add_argument(
        "-curve_dir", "--curve_dir", help="folder with server.key and client.key_secret, if the server uses CURVE"
    )
    parser.add_argument("-json", "--json", action="store_true", help="show the whole status, as JSON")
    args = parser.parse_args(argv)
    if args.watch is not None and not args.watch > 0:
        parser.error(f"-watch must be more than 0 seconds, got {args.watch:g}")
    try:
        _show((args.ip, args.port, args.port_out), every_s=args.watch, as_json=args.json, curve_dir=args.curve_dir)
    except StatusError as exc:
        sys.stderr.write(f"bert-serving-status: {exc}\n")
        return 1
    return 0


def _show(server: tuple[str, int, int], *, every_s: float | None, as_json: bool, curve_dir: str | None) -> None:
    from .status_table import can_draw, show, show_repeatedly

    if every_s is None:
        show(*server, as_json=as_json, curve_dir=curve_dir)
    elif as_json or not can_draw():
        show_repeatedly(*server, every_s=every_s, as_json=as_json, curve_dir=curve_dir)
    else:
        from .watch import watch

        watch(*server, every_s=every_s, curve_dir=curve_dir)
