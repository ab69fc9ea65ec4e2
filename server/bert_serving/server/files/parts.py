"""The folder beside the output that holds what is finished, so that a run that was ended can go on.

vectors.parquet.parts/manifest.json     which texts and settings the parts belong to, and how many rows are done
                      part-00000.arrow  the rows of the first window: the copied columns, and the vectors
                      part-00000.jsonl  its rows without a vector, if there are any, and the reasons
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import FileError

_MANIFEST = "manifest.json"
_VERSION = 1


class Parts:
    """The finished parts of an output. Raises FileError if they belong to another job.

    output: the file that the parts will become. job: what must be the same for a run that goes on.
    """

    def __init__(self, output: Path, job: Mapping[str, object]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._job = json.loads(json.dumps(job))
        self.num_rows = self.num_parts = self.num_bad = 0
        try:
            self.folder.mkdir(exist_ok=True)
            text = (self.folder / _MANIFEST).read_text()
        except FileNotFoundError:
            self._write_manifest()
            return
        except OSError as exc:
            raise FileError(f"cannot write beside {output}: {exc}") from exc
        manifest = json.loads(text)
        for name in sorted({*manifest["job"], *self._job}):
            before, now = manifest["job"].get(name), self._job.get(name)
            if before != now:
                raise FileError(
                    f"{self.folder} belongs to a run with another {name} ({_short(before)}, now {_short(now)}): "
                    "finish that run, or remove the folder"
                )
        self.num_rows, self.num_parts, self.num_bad = (manifest[key] for key in ("rows", "parts", "bad"))

    def add(self, table: pa.Table, bad: Mapping[int, str]) -> None:
        """Store the rows that follow those that are stored. bad: why rows have no vector, by their index."""
        path = self._path(self.num_parts, "arrow")
        partial = path.with_suffix(".partial")
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        partial.rename(path)
        reasons = self._path(self.num_parts, "jsonl")
        reasons.unlink(missing_ok=True)
        if bad:
            lines = [json.dumps({"row": self.num_rows + i, "error": bad[i]}) for i in sorted(bad)]
            reasons.write_text("".join(f"{line}\n" for line in lines))
        self.num_rows += len(table)
        self.num_parts += 1
        self.num_bad += len(bad)
        self._write_manifest()

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

    def remove(self) -> None:
        """Remove the folder, because the output is finished."""
        shutil.rmtree(self.folder)

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / f"part-{number:05d}.{ending}"

    def _write_manifest(self) -> None:
        facts: dict[str, Any] = {"version": _VERSION, "job": self._job, "rows": self.num_rows}
        facts |= {"parts": self.num_parts, "bad": self.num_bad}
        partial = self.folder / f"{_MANIFEST}.partial"
        with partial.open("w") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.folder / _MANIFEST)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
