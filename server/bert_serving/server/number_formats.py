"""The number formats of vectors in replies over HTTP and in files."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import Rows

#: int8: each vector is scaled so that its largest absolute component is 127; uint8: int8 plus 128. ubinary: one
#: bit for each component, 1 if the component is above zero; 8 bits form a byte, and the first component is the
#: highest bit. binary: ubinary minus 128.
Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

#: Vectors in one of the formats of Dtype.
Numbers: TypeAlias = npt.NDArray[np.generic]

MAX_FLOAT16 = float(np.finfo(np.float16).max)


def converted(rows: Rows, dtype: Dtype | None) -> Numbers:
    """Return vectors (..., D) in a number format, little-endian and contiguous. NaN becomes 0, except in float32.

    dtype: the number format; None: the format of `rows` is kept. Raises OverflowError if a component is too large
    for the format.
    """
    if dtype is None:
        return np.ascontiguousarray(rows)
    if dtype == "float32":
        return np.ascontiguousarray(rows, dtype=dtype)
    without_nan = np.nan_to_num(rows, nan=0.0) if np.isnan(rows.min(initial=0)) else rows  # of texts with errors
    if dtype == "float16":
        if np.abs(without_nan).max(initial=0.0) > MAX_FLOAT16:
            raise OverflowError("a component is too large for float16")
        return np.ascontiguousarray(rows, dtype=dtype)
    rows = without_nan
    if dtype in ("int8", "uint8"):
        largest = np.abs(rows).max(axis=-1, keepdims=True).astype(np.float32)
        largest[largest == 0] = 1  # avoids a division by zero
        scaled: npt.NDArray[np.int8] = np.rint(rows / largest * 127).astype(np.int8)
        return scaled if dtype == "int8" else (scaled.astype(np.int16) + 128).astype(np.uint8)
    bits = np.packbits(rows > 0, axis=-1)
    return bits if dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
