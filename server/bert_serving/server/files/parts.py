"""The folder beside the output that holds what is finished, so that a run that was ended can go on.

vectors.parquet.parts/manifest.json     which texts and settings the parts belong to, and how many rows are done
                      part-00000.arrow  the rows of the first window: the copied columns, and the vectors
                      part-00000.jsonl  its rows without a vector, if there are any, and the reasons
vectors.npy.parts/    vectors.npy       the vectors of all finished windows, instead of part-00000.arrow
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..model.errors import one_line
from .arrays import GrowingArray, vectors_of
from .errors import FileError

_MANIFEST = "manifest.json"
_LOCK = "lock"
_VERSION = 2


def parts_folder(output: Path) -> Path:
    """Return the folder that holds the finished parts of an output."""
    return output.with_name(f"{output.name}.parts")


class Parts:
    """The finished parts of an output. Raises FileError if they belong to another job.

    output: the file that the parts will become. job: what must be the same for a run that goes on. is_pipe: a pipe
    cannot be read again, so drop the parts of its earlier run. Use it with `with`: only one run at a time may have
    the parts.
    """

    def __init__(self, output: Path, job: Mapping[str, object], *, is_pipe: bool = False) -> None:
        self.folder = parts_folder(output)
        self.array = self.folder / "vectors.npy"
        self._growing = GrowingArray(self.array) if output.suffix == ".npy" else None
        self._job = json.loads(json.dumps(job))
        self.num_rows = self.num_parts = self.num_bad = self.num_cut = 0
        self.is_complete = False
        if self.folder.exists() and not (self.folder / _LOCK).exists():
            raise FileError(f"{self.folder} is not from this program: remove it, or choose another output")
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"another run is writing {output}") from None
        if not (self.folder / _MANIFEST).exists():
            self._write_manifest()
            return
        self._go_on(is_pipe=is_pipe)

    def _go_on(self, *, is_pipe: bool) -> None:
        """Read the manifest of the earlier run."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            if manifest["version"] != _VERSION:
                raise ValueError(f"version {manifest['version']}")
            job = dict(manifest["job"])
            numbers = [manifest[key] for key in ("rows", "parts", "bad", "cut", "is_complete")]
        except (ValueError, KeyError, TypeError) as exc:
            raise FileError(
                f"{self.folder / _MANIFEST} cannot be read ({one_line(exc)}): remove the folder"
            ) from exc
        if numbers[1] == 0 or (is_pipe and not job.get("input")):  # the earlier run had a pipe, too
            self._write_manifest()
            return
        for name in sorted({*job, *self._job}):
            before, now = job.get(name), self._job.get(name)
            if before != now:
                other = _other(name, before, now)
                raise FileError(
                    f"{self.folder} belongs to a run with {other}: finish that run, or remove the folder"
                )
        self.num_rows, self.num_parts, self.num_bad, self.num_cut, self.is_complete = numbers

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.num_parts:
            self.remove()
        self._lock.close()

    def add(self, table: pa.Table, bad: Sequence[Mapping[str, object]], num_cut: int) -> None:
        """Store the rows that follow those that are stored.

        bad: what is said about rows without a vector. num_cut: how many texts were cut.
        """
        if self._growing is not None:
            self._growing.add(vectors_of(table), self.num_rows)
        else:
            self._store(table)
        reasons = self._path(self.num_parts, "jsonl")
        reasons.unlink(missing_ok=True)
        if bad:
            reasons.write_text("".join(f"{json.dumps(each)}\n" for each in bad))
            _flush(reasons)
        self.num_rows += len(table)
        self.num_parts += 1
        self.num_bad += len(bad)
        self.num_cut += num_cut
        self._write_manifest()

    def _store(self, table: pa.Table) -> None:
        path = self._path(self.num_parts, "arrow")
        partial = path.with_suffix(".partial")
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        _flush(partial)
        partial.rename(path)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of each part, mapped into memory."""
        for i in range(self.num_parts):
            with pa.memory_map(str(self._path(i, "arrow"))) as file:
                yield pa.ipc.open_file(file).read_all()

    def reasons(self) -> Iterator[str]:
        """Yield a line of JSON for each row without a vector."""
        for i in range(self.num_parts):
            path = self._path(i, "jsonl")
            if path.exists():
                yield path.read_text()

    def complete(self) -> None:
        """Note that the output is written."""
        self.is_complete = True
        self._write_manifest()

    def remove(self) -> None:
        """Remove the folder, because the output is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / f"part-{number:05d}.{ending}"

    def _write_manifest(self) -> None:
        facts: dict[str, Any] = {"version": _VERSION, "job": self._job, "rows": self.num_rows}
        facts |= {"parts": self.num_parts, "bad": self.num_bad, "cut": self.num_cut}
        facts |= {"is_complete": self.is_complete}
        partial = self.folder / f"{_MANIFEST}.partial"
        with partial.open("w") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.folder / _MANIFEST)


def _flush(path: Path) -> None:
    """Let the disk have a file before its name says that it is complete."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _other(name: str, before: object, now: object) -> str:
    """Return what is different between two runs."""
    if name == "input":
        return "other input files, or the same ones before they changed"
    if name == "model":  # the fingerprint covers both
        return "another model, or other settings of it"
    return f"another {name} ({_short(before)}, now {_short(now)})"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
