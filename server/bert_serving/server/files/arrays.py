"""Vectors as a column of a table, and as a file of NumPy that grows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

VECTOR = "vector"  # the column with the vectors


def vector_column(rows: npt.NDArray[Any], missing: Iterable[int]) -> pa.Array:
    """Return vectors (B, D) as a column of fixed-size lists, without a copy; rows in `missing` are null."""
    values = pa.array(rows.reshape(-1))
    is_null = np.zeros(len(rows), bool)
    is_null[list(missing)] = True
    mask = pa.array(is_null) if is_null.any() else None
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1], mask=mask)


def vectors_of(table: pa.Table) -> npt.NDArray[Any]:
    """Return the vectors of a table, (B, D); NaN where a row has none."""
    column = table[VECTOR].combine_chunks()
    width = column.type.list_size
    rows: npt.NDArray[Any] = column.values.to_numpy(zero_copy_only=False).reshape(-1, width)
    return rows


class GrowingArray:
    """An .npy file to which rows are added. `numpy.load(path, mmap_mode="r")` opens it at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, rows: npt.NDArray[Any], start: int) -> None:
        """Store rows (B, D) from row `start` on. What is behind them is dropped."""
        with self._path.open("r+b" if start else "wb") as file:
            write_header(file, rows, num_rows=start)
            file.seek(start * rows[:1].nbytes, os.SEEK_CUR)
            file.truncate()
            file.write(np.ascontiguousarray(rows).data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
            # NumPy leaves room for longer numbers of rows, so the header keeps its length.
            file.seek(0)
            write_header(file, rows, num_rows=start + len(rows))
            file.flush()
            os.fsync(file.fileno())


def write_header(file: Any, rows: npt.NDArray[Any], *, num_rows: int) -> None:
    """Write the header of an .npy file of so many rows like these."""
    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (num_rows, *rows.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)
