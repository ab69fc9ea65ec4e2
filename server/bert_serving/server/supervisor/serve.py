"""Runs one server in this process: what bert-serving-start and BertServer have in common."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable

from ..logs import set_up_logging
from ..settings import Settings
from .exposure import exposures
from .startup import StartError, resolve, token_rows
from .supervisor import Supervisor

log = logging.getLogger(__name__)


def serve(
    asked: Settings,
    *,
    on_start: Callable[[Settings, Supervisor], None],
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Set up logging and serve until a signal, TERMINATION or `Supervisor.request_stop`. Main thread only.

    asked: the settings as the user gave them. on_start: called when all ports are open, with the settings in
    force. on_ready: called once, when everything is ready. Raises StartError, which is logged already.
    """
    set_up_logging("server", asked.log_options)
    _allow_many_files()
    for line in asked.without_effect():
        log.warning("%s", line)
    try:
        settings = resolve(asked)
        if settings.log_format == "json":
            log.info("settings in force", extra={"fields": {"settings": settings.shown()}})
        for line in exposures(settings):
            log.warning("%s", line)
        supervisor = Supervisor(settings, token_rows=token_rows(asked, settings), on_ready=on_ready)
        with supervisor.handle_signals():
            on_start(settings, supervisor)
            supervisor.run()
    except StartError as exc:
        log.error("%s", exc)
        raise
    log.info("stopped")


def _allow_many_files() -> None:
    """Raise the limit for open files as far as the system allows: 1,024 files are enough for about 350 clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as exc:  # as on macOS, where the hard limit is infinite
        log.debug("cannot raise the limit of %d open files: %s", soft, exc)
    else:
        log.debug("limit for open files: %d, it was %d", hard, soft)
