"""The entry point of every child process. This file imports little, because all processes import it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import _SysExcInfoType as SysExcInfoType


def run(
    target: str,
    title: str,
    verbose: bool,
    scratch_dir: str,
    kwargs: Mapping[str, object],
    env: Mapping[str, str],
) -> None:
    """Call the function `module:function` with kwargs. A child imports only what its own target needs.

    scratch_dir: folder for temporary files; the server removes it. env: environment variables that must be set
    before the module is imported.
    """
    set_up_logging(title, verbose=verbose)
    os.environ.update(env)
    # Importing Transformers makes torch create this folder, by default in /tmp, where nothing would remove it.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(scratch_dir, "torchinductor"))
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(**kwargs)


class WithoutMessages(logging.Formatter):
    """Writes the traceback of an exception without its message, which may contain a text of a caller."""

    def formatException(self, ei: SysExcInfoType) -> str:  # noqa: N802  # logging's name
        """Return where an exception was raised, and its type."""
        kind, _, frames = ei
        name = "no exception" if kind is None else kind.__name__
        where = "".join(traceback.format_tb(frames)).rstrip()
        return f"Traceback (most recent call last):\n{where}\n{name} (-verbose logs its message, too)"


def set_up_logging(title: str, *, verbose: bool) -> None:
    """Log to standard error, one line for each event, with the title of the process."""
    formatter = logging.Formatter if verbose else WithoutMessages
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(f"%(asctime)s %(levelname)s {title}: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    for chatty in ("asyncio", "uvicorn", "httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
