"""Converts vectors to the number format and the container that the caller requests."""

from __future__ import annotations

import base64
import io
from itertools import chain
from typing import Literal

import numpy as np
from bert_serving.protocol import Rows
from starlette.datastructures import Headers
from starlette.responses import Response

from ..number_formats import Dtype, Numbers, converted
from .errors import Unprocessable
from .responses import PiecesResponse

#: float: JSON numbers; base64: the bytes of each vector, as base64 in JSON; raw: the bytes of all vectors; npy:
#: NumPy's file format.
Container = Literal["float", "base64", "raw", "npy"]
_PIECE_BYTES = 1 << 20

_BY_MEDIA_TYPE: dict[str, Container] = {
    "application/json": "float",
    "application/octet-stream": "raw",
    "application/x-npy": "npy",
}


def container_for(headers: Headers, requested: Container | None) -> Container:
    """Return the container that the body requests, else the one that the Accept header prefers."""
    if requested is not None:
        return requested
    accepted = _accepted(headers.get("accept", ""))
    return next((_BY_MEDIA_TYPE[kind] for kind in accepted if kind in _BY_MEDIA_TYPE), "float")


def _accepted(accept: str) -> list[str]:
    """Return the media types of an Accept header, most preferred first. RFC 9110, section 12.5.1."""
    found = []
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((value for name, _, value in (p.partition("=") for p in parameters) if name == "q"), "1")
        found.append((float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0, kind))
    return [kind for weight, kind in sorted(found, key=lambda each: -each[0]) if weight > 0]


def convert(rows: Rows, dtype: Dtype | None) -> Numbers:
    """Return vectors (..., D) in a number format; see `converted`. Raises Unprocessable if one does not fit."""
    try:
        return converted(rows, dtype)
    except OverflowError as exc:
        raise Unprocessable(f"{exc}: request float32, or normalize") from exc


def encoded(vectors: Numbers, container: Container) -> Numbers | str | list[str]:
    """Return vectors (B, D), or one vector (D,), for JSON: as arrays of numbers, or each vector as base64."""
    if container != "base64":
        return vectors
    if vectors.ndim == 1:
        return base64.b64encode(vectors.data).decode()
    return [base64.b64encode(vector.data).decode() for vector in vectors]


def binary_response(vectors: Numbers, container: Container, headers: dict[str, str]) -> Response | None:
    """Return the response for a container that is not JSON, or None if the container is JSON."""
    if container == "raw":
        head, media_type = b"", "application/octet-stream"
        shape = ",".join(map(str, vectors.shape))
        headers = {**headers, "x-dtype": vectors.dtype.name, "x-shape": shape}
    elif container == "npy":
        head, media_type = _npy_head(vectors), "application/x-npy"
    else:
        return None
    view = vectors.reshape(-1).view(np.uint8).data
    if len(view) <= _PIECE_BYTES:
        return Response(head + bytes(view), headers=headers, media_type=media_type)
    pieces = (view[i : i + _PIECE_BYTES] for i in range(0, len(view), _PIECE_BYTES))
    return PiecesResponse(
        chain([head], pieces), headers=headers, media_type=media_type, num_bytes=len(head) + len(view)
    )


def _npy_head(vectors: Numbers) -> bytes:
    """Return what precedes the bytes of an array in a file of NumPy's format."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
    return file.getvalue()
