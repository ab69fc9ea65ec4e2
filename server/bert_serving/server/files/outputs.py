"""Writes the finished rows as one file. A file that is not complete has another name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from .errors import FileError
from .parts import Parts

VECTOR = "vector"  # the column with the vectors


def check_output(output: Path, *, num_columns: int) -> None:
    """Raise FileError if this file cannot be written."""
    if output.suffix not in _WRITERS:
        raise FileError(f"the name of the output must end with {', '.join(_WRITERS)}, got {output.name!r}")
    if not output.parent.is_dir():
        raise FileError(f"there is no folder {output.parent}")
    if output.exists():
        raise FileError(f"{output} exists already: remove it first")
    if output.suffix == ".npy" and num_columns:
        raise FileError("a .npy file holds only vectors: leave out -columns")


def write_output(output: Path, parts: Parts) -> None:
    """Write the rows of all parts to the output, then remove the parts."""
    if not parts.num_parts:
        parts.remove()
        raise FileError("the input has no rows")
    partial = output.with_name(f"{output.name}.partial")
    _WRITERS[output.suffix](partial, parts)
    partial.rename(output)
    if parts.num_bad:
        output.with_name(f"{output.name}.errors.jsonl").write_text("".join(parts.reasons()))
    parts.remove()


def _write_parquet(path: Path, parts: Parts) -> None:
    tables = parts.tables()
    first = next(tables)
    others = [name for name in first.schema.names if name != VECTOR]
    with pa.parquet.ParquetWriter(path, first.schema, compression="zstd", use_dictionary=others) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _write_arrow(path: Path, parts: Parts) -> None:
    tables = parts.tables()
    first = next(tables)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _write_npy(path: Path, parts: Parts) -> None:
    memory = None
    start = 0
    for rows in map(_vectors_of, parts.tables()):
        if memory is None:
            shape = (parts.num_rows, rows.shape[1])
            memory = np.lib.format.open_memmap(path, mode="w+", dtype=rows.dtype, shape=shape)
        memory[start : start + len(rows)] = rows
        start += len(rows)
    if memory is not None:
        memory.flush()


def _write_jsonl(path: Path, parts: Parts) -> None:
    with path.open("w") as file:
        for table in parts.tables():
            file.writelines(f"{json.dumps(row, default=str)}\n" for row in table.to_pylist())


_WRITERS: dict[str, Callable[[Path, Parts], None]] = {
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".npy": _write_npy,
    ".jsonl": _write_jsonl,
}


def vector_column(rows: npt.NDArray[Any], missing: Iterator[int] | list[int]) -> pa.Array:
    """Return vectors (B, D) as a column of fixed-size lists, without a copy; rows in `missing` are null."""
    values = pa.array(rows.reshape(-1))
    is_null = np.zeros(len(rows), bool)
    is_null[list(missing)] = True
    mask = pa.array(is_null) if is_null.any() else None
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1], mask=mask)


def _vectors_of(table: pa.Table) -> npt.NDArray[Any]:
    """Return the vectors of a part, (B, D); NaN where a row has none."""
    column = table[VECTOR].combine_chunks()
    width = column.type.list_size
    rows: npt.NDArray[Any] = column.values.to_numpy(zero_copy_only=False).reshape(-1, width)
    return rows
