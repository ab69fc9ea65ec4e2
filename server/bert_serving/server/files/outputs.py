"""Writes the finished rows as one file. A file that is not complete has another name."""

from __future__ import annotations

import base64
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet

from ..model.errors import one_line
from .arrays import VECTOR, vectors_of, write_header
from .errors import FileError
from .parts import Parts, parts_folder


def check_output(output: Path, columns: Sequence[str]) -> None:
    """Raise FileError if this file cannot be written."""
    if output.suffix not in _WRITERS:
        raise FileError(f"the name of the output must end with {', '.join(_WRITERS)}, got {output.name!r}")
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise FileError("the name of the output is not UTF-8") from None
    if not output.parent.is_dir():
        raise FileError(f"there is no folder {output.parent}")
    if output.exists() and not parts_folder(output).exists():
        raise FileError(f"{output} exists already: remove it first")
    if output.suffix in (".npy", ".npz") and columns:
        raise FileError(f"a {output.suffix} file holds only vectors: leave out -columns")
    if VECTOR in columns:
        raise FileError(f"the input has a column {VECTOR!r} too: name the others with -columns")


def check_columns(output: Path, columns: pa.Schema) -> None:
    """Raise FileError if the columns have types that the output's format does not have."""
    for field in columns:
        if _has(pa.types.is_dictionary, field.type):
            raise FileError(f"column {field.name!r} has categories inside of values: leave it out")
        if output.suffix == ".jsonl" and _is_nested(field.type) and not _is_json(field.type):
            raise FileError(f"JSON cannot hold column {field.name!r}, {field.type}: write .parquet or .arrow")
    if output.suffix != ".parquet":
        return
    try:
        with pa.parquet.ParquetWriter(pa.BufferOutputStream(), columns) as writer:
            writer.write_table(columns.empty_table())
    except pa.ArrowException as exc:
        raise FileError(f"Parquet cannot hold these columns ({one_line(exc)}): write .arrow") from exc


def storable(column: pa.ChunkedArray, output: Path) -> pa.ChunkedArray:
    """Return a copied column as the output's format can hold it: in JSON, times and decimals are strings."""
    if output.suffix != ".jsonl" or _is_json(column.type):
        return column
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        found = [None if each is None else base64.b64encode(each).decode() for each in column.to_pylist()]
        return pa.chunked_array([pa.array(found, pa.string())])
    return column.cast(pa.string())


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def _is_json(kind: pa.DataType) -> bool:
    """Return whether JSON has such values."""
    if _is_nested(kind):
        checks_of_nested = (
            pa.types.is_struct,
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
        )
        is_known = any(check(kind) for check in checks_of_nested)
        return is_known and all(_is_json(kind.field(i).type) for i in range(kind.num_fields))
    checks = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    return any(check(kind) for check in (*checks, pa.types.is_string, pa.types.is_large_string))


def _has(check: Callable[[pa.DataType], bool], kind: pa.DataType) -> bool:
    """Return whether a type, or one inside of it, passes a check."""
    return check(kind) or any(_has(check, kind.field(i).type) for i in range(kind.num_fields))


def write_output(output: Path, parts: Parts) -> None:
    """Write the rows of all parts to the output, then remove the parts."""
    if not parts.num_parts:
        raise FileError("the input has no rows")
    if not (parts.is_complete and output.exists()):
        partial = output.with_name(f"{output.name}.partial")
        _WRITERS[output.suffix](partial, parts)
        errors = output.with_name(f"{output.name}.errors.jsonl")
        errors.unlink(missing_ok=True)
        if parts.num_bad:
            with errors.open("w") as file:
                file.writelines(parts.reasons())
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        parts.complete()  # a crash from here on leaves parts that are only to be removed
        partial.rename(output)
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
    """Give the array of the parts a second name: they keep theirs, in case that the run ends now."""
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(parts.array)
    except OSError:  # not every file system has hard links
        shutil.copyfile(parts.array, path)


def _write_npz(path: Path, parts: Parts) -> None:
    with zipfile.ZipFile(path, "w") as file, file.open(f"{VECTOR}s.npy", "w", force_zip64=True) as member:
        _write_array(member, parts)


def _write_array(file: IO[bytes], parts: Parts) -> None:
    for i, rows in enumerate(map(vectors_of, parts.tables())):
        if i == 0:
            write_header(file, rows, num_rows=parts.num_rows)
        file.write(np.ascontiguousarray(rows).data.cast("B"))


def _write_jsonl(path: Path, parts: Parts) -> None:
    with path.open("wb") as file:
        for table in parts.tables():
            columns = table.drop_columns(VECTOR).to_pylist() if table.num_columns > 1 else [{}] * len(table)
            is_null = table[VECTOR].is_null().to_pylist()
            for row, vector, is_missing in zip(columns, vectors_of(table), is_null, strict=True):
                content = {**row, VECTOR: None if is_missing else vector}
                file.write(orjson.dumps(content, option=_JSON))


_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS

_WRITERS: dict[str, Callable[[Path, Parts], None]] = {
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".jsonl": _write_jsonl,
}
