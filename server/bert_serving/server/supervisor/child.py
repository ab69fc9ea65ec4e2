"""First steps of a child process. Light: it is imported by every child, and by the server for its name."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any


def run(
    target: str, title: str, verbose: bool, scratch_dir: str, kwargs: dict[str, Any], env: dict[str, str]
) -> None:
    """Call `module:function` with the arguments; a child imports only what its own target needs.

    scratch_dir: a folder that goes away with the server. env: variables that its imports look at.
    """
    set_up_logging(title, verbose=verbose)
    os.environ.update(env)
    # Importing Transformers makes torch create this folder, by default one in /tmp that nobody removes.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(scratch_dir, "torchinductor"))
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(**kwargs)


def set_up_logging(title: str, *, verbose: bool) -> None:
    """Log to standard error, one line an event, with the process' title in front."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format=f"%(asctime)s %(levelname)s {title}: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("asyncio", "uvicorn", "httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
