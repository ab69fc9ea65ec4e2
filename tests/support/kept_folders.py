"""Folders that are made once and kept: environments, prepared models."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path


def cache() -> Path:
    """Return the folder of all kept folders: BERT_SERVING_CLIENTS_CACHE, or one in the user's home."""
    return Path(os.environ.get("BERT_SERVING_CLIENTS_CACHE", "~/.cache/bert-serving-test-clients")).expanduser()


def kept(name: str, contents: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache. If it is not complete, `make` makes it.

    contents: what the folder is made from; other contents make another folder.
    """
    digest = hashlib.sha256(" ".join(contents).encode()).hexdigest()
    folder = cache() / f"{name}-{digest[:12]}"
    done = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making this folder
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
