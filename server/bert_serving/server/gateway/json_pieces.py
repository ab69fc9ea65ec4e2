"""JSON in pieces: a large value is written piece by piece, so that no call of the JSON library takes long.

A call of orjson holds Python's interpreter lock, so even in a thread it would stop all other requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
import orjson

_PIECE_BYTES = 256 << 10
_SMALL_VALUES = 8192  # a value with at most this many numbers, strings and lists is written by one call


def json_pieces(value: object) -> Iterator[bytes]:
    """Yield the JSON text of a value in pieces of about 256 KiB. Iterators in it are written as arrays."""
    waiting, size = [], 0
    for text in _texts(value):
        waiting.append(text)
        size += len(text)
        if size >= _PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _texts(value: object) -> Iterator[bytes]:
    if is_small(value):
        yield dump(value)
    elif isinstance(value, Mapping):
        yield from _joined(b"{", (chain([dump(key) + b":"], _texts(each)) for key, each in value.items()), b"}")
    elif isinstance(value, np.ndarray) and value[0].size <= _SMALL_VALUES:
        step = _SMALL_VALUES // value[0].size
        yield from _joined(b"[", ([dump(value[i : i + step])[1:-1]] for i in range(0, len(value), step)), b"]")
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        yield from _joined(b"[", map(_texts, value), b"]")
    else:
        yield dump(value)


def _joined(begin: bytes, items: Iterable[Iterable[bytes]], end: bytes) -> Iterator[bytes]:
    yield begin
    for i, item in enumerate(items):
        if i:
            yield b","
        yield from item
    yield end


def dump(value: object) -> bytes:
    """Return a value as JSON, in one piece."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def is_small(value: object) -> bool:
    """Whether a value has so few parts that writing it takes at most about a millisecond."""
    return _count(value, _SMALL_VALUES) <= _SMALL_VALUES


def _count(value: object, limit: int) -> int:
    """Return the number of values in a value. Stops counting above the limit."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, str | bytes):
        return 1 + len(value) // 64
    if isinstance(value, Iterator):
        return limit + 1
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 1
    count = 1
    for each in value:
        count += _count(each, limit - count)
        if count > limit:
            break
    return count
