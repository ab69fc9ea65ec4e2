"""The entry point of a worker process, which decides what Transformers imports."""

from __future__ import annotations

from typing import Any

import transformers.utils
from transformers.utils import import_utils

# Where they are installed, Transformers imports them for the generation of text and for losses, which no encoder
# needs. It takes a seventh of the time until a worker is ready. sentence-transformers depends on both.
_UNNEEDED = ("sklearn", "scipy")


def main(**options: Any) -> None:
    """Serve with one model on one device. options: as in worker.main."""
    for package in _UNNEEDED:
        for module in (transformers.utils, import_utils):
            setattr(module, f"is_{package}_available", lambda: False)
    from . import worker

    worker.main(**options)
