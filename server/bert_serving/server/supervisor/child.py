"""The entry point of every child process. This file imports little, because all processes import it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping

from ..logs import LogOptions, log_crash, set_up_logging


def run(
    target: str,
    title: str,
    logs: LogOptions,
    scratch_dir: str,
    kwargs: Mapping[str, object],
    env: Mapping[str, str],
) -> None:
    """Call the function `module:function` with kwargs. A child imports only what its own target needs.

    scratch_dir: folder for temporary files; the server removes it. env: environment variables that must be set
    before the module is imported.
    """
    set_up_logging(title, logs)
    os.environ.update(env)
    # Importing Transformers makes torch create this folder, by default in /tmp, where nothing would remove it.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(scratch_dir, "torchinductor"))
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(**kwargs)
    except Exception as exc:
        log_crash(exc)  # multiprocessing would print its message, which may quote a text
        sys.exit(1)
