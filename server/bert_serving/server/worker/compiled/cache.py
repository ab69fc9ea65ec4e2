"""The folder that keeps compiled graphs and operators. Each has a folder, named by a key of all it depends on."""

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

_MAX_BYTES = 4 << 30  # all folders together; those that were not used for the longest time are deleted first
_VARIABLE = "BERT_SERVING_COMPILE_CACHE"
_PARTIAL = "partial-"
_ABANDONED_S = 86400.0  # nothing takes so long to compile


class Cache:
    """Compiled graphs and operators in a folder.

    Raises OSError if the folder cannot be used, or if others may write to it.

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
        """Return the folder of a key and note that it is used; None if there is none."""
        found = self.folder / key
        if not found.is_dir():
            return None
        with suppress(OSError):  # a cache in an image may be read-only
            os.utime(found)
        return found

    def remove(self, key: str) -> None:
        """Remove what the key stands for, so that it is compiled again."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Let only one process at a time compile what the key stands for. Others wait here."""
        with (self.folder / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder for files that are being compiled; remove what is left of it afterwards."""
        self._remove_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, key: str, folder: Path) -> Path:
        """Move a finished folder into the cache; return its new path. Older ones make room for it."""
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


def key_of(fingerprint: str, layers: Sequence[int], dtype: str, max_tokens: int, operators: str) -> str:
    """Return the key of a graph: a hash of the model, its options, Transformers, this code and the operators.

    fingerprint: of the model's weights and options. operators: their key.
    """
    folder = Path(__file__).parent
    files = [folder / "calibration.txt", *sorted(folder.glob("*.py"))]
    return _hash(fingerprint, list(layers), dtype, max_tokens, transformers.__version__, operators, _hashes(files))


def operators_key(compiler: str) -> str:
    """Return the key of the operators: a hash of their code, the compiler, PyTorch, and what the processor can.

    compiler: the path of the C++ compiler. Raises OSError or subprocess.SubprocessError.
    """
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    files = [*SOURCES, Path(__file__).with_name("operators.py")]
    said = version.decode(errors="replace")
    return _hash("operators", torch.__version__, said, _processor(), may_use_tiles(), _hashes(files))


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _hashes(files: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _processor() -> list[str]:
    """Return the lines about the first CPU that decide which instructions it has."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]


def _default_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches) / "bert-serving" / "compiled"
