"""Vectors in the form that a caller reads best: number format, and container."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import Rows
from starlette.datastructures import Headers
from starlette.responses import Response

from .dialect import Unprocessable

#: float: JSON numbers; base64: the bytes of each vector; raw: the bytes of all; npy: NumPy's file format.
Container = Literal["float", "base64", "raw", "npy"]
#: int8 and uint8: each vector scaled so that its largest component is 127; binary and ubinary: a bit for each
#: component that is above zero, eight in a byte, first component highest; binary counts from -128.
Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Numbers = npt.NDArray[Any]

_BY_ACCEPT: dict[str, Container] = {
    "application/json": "float",
    "application/octet-stream": "raw",
    "application/x-npy": "npy",
}


def container_for(headers: Headers, asked: Container | None) -> Container:
    """Return the container that the body asks for, or else the Accept header."""
    if asked is not None:
        return asked
    return next((_BY_ACCEPT[kind] for kind in _accepted(headers.get("accept", "")) if kind in _BY_ACCEPT), "float")


def _accepted(accept: str) -> list[str]:
    """Return the media types of an Accept header, the most wanted first. RFC 9110, section 12.5.1."""
    found = []
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((value for name, _, value in (p.partition("=") for p in parameters) if name == "q"), "1")
        found.append((float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0, kind))
    return [kind for weight, kind in sorted(found, key=lambda each: -each[0]) if weight > 0]


def convert(rows: Rows, dtype: Dtype | None) -> Numbers:
    """Return vectors (..., D) in the number format; None: as they are. Raises Unprocessable.

    Little-endian and contiguous.
    """
    if dtype is None:
        return np.ascontiguousarray(rows)
    if dtype in ("float32", "float16"):
        if dtype == "float16" and np.abs(rows).max(initial=0.0) > np.finfo(np.float16).max:
            raise Unprocessable("a component is too large for float16: ask for float32, or normalize")
        return np.ascontiguousarray(rows, dtype=dtype)
    if dtype in ("int8", "uint8"):
        largest = np.abs(rows).max(axis=-1, keepdims=True).astype(np.float32)
        largest[largest == 0] = 1  # of zeros
        scaled: Numbers = np.rint(rows / largest * 127).astype(np.int8)
        return scaled if dtype == "int8" else (scaled.astype(np.int16) + 128).astype(np.uint8)
    bits: Numbers = np.packbits(rows > 0, axis=-1)
    return bits if dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def encoded(vectors: Numbers, container: Container) -> Any:
    """Return vectors (B, D), or one (D,), as they stand in JSON: arrays of numbers, or base64 of each."""
    if container != "base64":
        return vectors
    if vectors.ndim == 1:
        return base64.b64encode(vectors.data).decode()
    return [base64.b64encode(vector.data).decode() for vector in vectors]


def binary_response(vectors: Numbers, container: Container, headers: dict[str, str]) -> Response | None:
    """Return the response of a container that is no JSON; None: it is."""
    if container == "raw":
        shape = ",".join(map(str, vectors.shape))
        headers = {**headers, "x-dtype": vectors.dtype.name, "x-shape": shape}
        return Response(
            vectors.reshape(-1).view(np.uint8).data, headers=headers, media_type="application/octet-stream"
        )
    if container == "npy":
        file = io.BytesIO()
        np.save(file, vectors, allow_pickle=False)
        return Response(file.getbuffer(), headers=headers, media_type="application/x-npy")
    return None
