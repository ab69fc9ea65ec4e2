"""bert-serving-start: run a server."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run a server until it is told to stop. Returns the exit code: 0, or 1 if it cannot serve."""
    try:
        return _start(argv)
    except KeyboardInterrupt:
        return 0  # Ctrl-C before the server was started is not a failure


def _start(argv: list[str] | None) -> int:
    import signal

    # Until the supervisor handles signals, SIGTERM must end this process as Ctrl-C does. SIGHUP asks for a reload,
    # and there is nothing to reload yet.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        from ..settings import parse_settings
        from ..supervisor.serve import serve
        from ..supervisor.startup import StartError
    except ModuleNotFoundError as exc:  # without the extra "server", only the client is installed
        sys.stderr.write(f"bert-serving-start: {exc}; pip install 'bert-embedding-service[server]'\n")
        return 1
    try:
        serve(parse_settings(argv), on_start=lambda settings, _: _show(settings.table(), settings.log_format))
    except StartError:
        return 1  # `serve` has logged the error
    return 0


def _show(table: str, log_format: str) -> None:
    if log_format == "json":
        return  # every line must be JSON, so `serve` has logged the settings
    sys.stdout.write(table + "\n")
    sys.stdout.flush()
