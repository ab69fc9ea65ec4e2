"""The folder that keeps compiled graphs. Each has a folder, named by a key of all that it depends on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers

from .operators import SOURCES, may_use_tiles

_MAX_BYTES = 4 << 30  # all graphs together; those that were not used for the longest time are deleted first
_VARIABLE = "BERT_SERVING_COMPILE_CACHE"
_PARTIAL = "partial-"
_ABANDONED_S = 86400.0  # no graph takes so long to compile


class Cache:
    """Compiled graphs in a folder. Raises OSError if the folder cannot be used, or if others may write to it.

    folder: None: the value of BERT_SERVING_COMPILE_CACHE, or bert-serving/compiled in the user's cache folder.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = Path(folder or os.environ.get(_VARIABLE) or _default_folder()).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = self.folder.stat()
        if facts.st_uid not in (os.geteuid(), 0) or facts.st_mode & 0o022:
            # Its files are programs, which run with the rights of the server.
            raise PermissionError(
                f"{self.folder} must belong to the user of the server, and only they may write to it"
            )

    def find(self, key: str) -> Path | None:
        """Return the folder of a graph and note that it is used; None if there is none."""
        found = self.folder / key
        if not found.is_dir():
            return None
        with suppress(OSError):  # a cache in an image may be read-only
            os.utime(found)
        return found

    def remove(self, key: str) -> None:
        """Remove a graph, so that it is compiled again."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Let only one process at a time compile the graph of this key. Others wait here."""
        with (self.folder / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder for the files of a graph that is being compiled; remove what is left of it afterwards."""
        self._remove_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, key: str, folder: Path) -> Path:
        """Move a finished folder into the cache; return its new path. Older graphs make room for it."""
        target = self.folder / key
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        self._trim(keep=target)
        return target

    def _remove_abandoned(self) -> None:
        """Remove what processes that were killed have left behind."""
        for path in self.folder.glob(f"{_PARTIAL}*"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)

    def _trim(self, *, keep: Path) -> None:
        entries = [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(_PARTIAL)]
        newest_first = sorted(entries, key=lambda path: (path == keep, path.stat().st_mtime), reverse=True)
        total = 0
        for path in newest_first:
            total += sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            if total > _MAX_BYTES and path != keep:
                shutil.rmtree(path, ignore_errors=True)  # but not its lock: another process may wait for that


def key_of(fingerprint: str, layers: Sequence[int], dtype: str, max_tokens: int, compiler: str) -> str:
    """Return the key of a graph: a hash of the model, its options, this code, PyTorch, and what the processor can.

    fingerprint: of the model's weights and options. compiler: the path of the C++ compiler.
    """
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    sources = [*SOURCES, Path(__file__).with_name("calibration.txt"), *sorted(Path(__file__).parent.glob("*.py"))]
    parts = [
        fingerprint,
        list(layers),
        dtype,
        max_tokens,
        torch.__version__,
        transformers.__version__,
        version.decode(errors="replace"),
        _processor(),
        may_use_tiles(),
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _processor() -> list[str]:
    """Return the lines about the first CPU that decide which instructions it has."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]


def _default_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches) / "bert-serving" / "compiled"
