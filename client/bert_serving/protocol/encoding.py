"""JSON and arrays as frames.

An array is sent as raw little-endian bytes in C order. Its dtype and its shape are sent as JSON.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from .messages import JsonObject, Rows

#: A frame of a message, sent or received.
Frame: TypeAlias = "bytes | memoryview"
Frames: TypeAlias = list[Frame]


def refuse_constant(name: str) -> object:
    """Raise ValueError. json calls this for NaN and Infinity, which it reads although they are not JSON."""
    raise ValueError(f"{name} is not a JSON value")


try:  # orjson is faster; a server installs it, a client does not need it
    import orjson

    dump_json = orjson.dumps
    load_json = orjson.loads
except ImportError:

    def dump_json(value: object) -> bytes:  # type: ignore[misc]
        """Return a value as JSON."""
        return json.dumps(value, separators=(",", ":")).encode()

    def load_json(text: Frame) -> Any:  # type: ignore[misc]
        """Return the value of a JSON text."""
        return json.loads(bytes(text), parse_constant=refuse_constant)


def array_info(rows: Rows) -> JsonObject:
    """Return the dtype and shape of an array."""
    return {"dtype": _name_of(rows.dtype), "shape": rows.shape}


def array_frame(rows: Rows) -> memoryview:
    """Return the bytes of an array."""
    little_endian = rows.astype(_little_endian(_name_of(rows.dtype)), order="C", copy=False)
    return little_endian.reshape(-1).view(np.uint8).data


def array_from_frame(info: JsonObject, frame: Frame) -> Rows:
    """Return the array that these results of `array_info` and `array_frame` describe. It is read-only."""
    rows: Rows = np.frombuffer(frame, _little_endian(str(info["dtype"]))).reshape(info["shape"])
    return rows


# numpy needs microseconds for a name, and for a dtype.
@lru_cache(maxsize=16)
def _name_of(dtype: np.dtype[Any]) -> str:
    return str(dtype.name)


@lru_cache(maxsize=16)
def _little_endian(name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(name).newbyteorder("<")
    return dtype
