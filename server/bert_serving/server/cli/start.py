"""bert-serving-start: serve until told to stop."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """bert-serving-start: serve until told to stop. Returns the exit code: 0, or 1 with one line of why."""
    try:
        return _start(argv)
    except KeyboardInterrupt:
        return 0  # before there was anything to stop


def _start(argv: list[str] | None) -> int:
    import signal

    # Until the supervisor takes over, SIGTERM ends the start as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import logging

    try:
        from ..settings import parse_settings
        from ..supervisor.child import set_up_logging
        from ..supervisor.startup import StartError, resolve, token_rows
        from ..supervisor.supervisor import Supervisor
    except ModuleNotFoundError as exc:  # the base install is the client alone
        sys.stderr.write(f"bert-serving-start: {exc}; pip install 'bert-embedding-service[server]'\n")
        return 1
    log = logging.getLogger(__name__)
    asked = parse_settings(argv)
    set_up_logging("server", verbose=asked.verbose)
    for line in asked.without_effect():
        log.warning("%s", line)
    try:
        settings = resolve(asked)
        supervisor = Supervisor(settings, token_rows=token_rows(asked, settings))
        with supervisor.stop_on_signals():
            sys.stdout.write(settings.table() + "\n")
            sys.stdout.flush()
            supervisor.run()
    except StartError as exc:
        log.error("%s", exc)
        return 1
    log.info("stopped")
    return 0
