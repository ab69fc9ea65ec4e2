"""bert-serving-start: run a server."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..settings import Settings

log = logging.getLogger(__name__)


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
        serve(parse_settings(argv), on_start=lambda settings, _: _show(settings))
    except StartError:
        return 1  # `serve` has logged the error
    return 0


def _show(settings: Settings) -> None:
    """Print the settings as a table, or log them if every line must be JSON."""
    if settings.log_format == "json":
        log.info("settings in force", extra={"fields": {"settings": settings.shown()}})
        return
    sys.stdout.write(settings.table() + "\n")
    sys.stdout.flush()
