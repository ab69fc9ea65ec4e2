"""TensorFlow's checkpoints (V2, the "TensorBundle"), read without TensorFlow.

    PREFIX.index                    a sorted table: the name of each tensor, and the position of its bytes
    PREFIX.data-00000-of-00002 ...  the bytes of the tensors, one after the other

The table has LevelDB's format (see its doc/table_format.md): blocks of entries, an index block that lists these
blocks, and a footer with the position of the index block. Values are messages of
tensorflow/core/protobuf/tensor_bundle.proto; the value of the empty key is the header. Every block and every
tensor has a checksum, which is verified. The files are not trusted: a length is compared with the size of the file
before it is used, so a small file cannot make this module allocate much memory. Every problem raises ModelError.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..errors import ModelError

_FOOTER_SIZE = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_SIZE = 5  # bytes after each block: the kind of compression and the checksum
_VERSION = 1  # the version of the format that this module reads

# The index of any language model is far smaller (BERT's has about 20 KB), and a file of this size can be read at
# once.
_MAX_INDEX_BYTES = 16 << 20
_MAX_TENSORS = 100_000
_MAX_NAME_BYTES = 1024
_MAX_DIMENSIONS = 32

# tensorflow/core/framework/types.proto. numpy has no bfloat16, so its bits are read as integers.
_BFLOAT16 = 14
_DTYPES = {1: "<f4", 3: "<i4", 9: "<i8", _BFLOAT16: "<u2", 19: "<f2"}
_OTHER_DTYPES = {2: "float64", 7: "string", 10: "bool"}

#: The values of a tensor; see `TensorBundle.read` for the types.
Tensor: TypeAlias = "npt.NDArray[np.floating | np.integer]"

_Message: TypeAlias = "dict[int, list[int | bytes]]"


class TensorBundle:
    """The tensors of one checkpoint, by name.

    prefix: the path of its files, without `.index`. Raises ModelError if the index cannot be read.
    """

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        path = Path(f"{prefix}.index")
        with _named(path):
            values = dict(_table(_read_index(path)))
            self._num_shards = _num_shards(values.pop(b"", None))
            # Keys that begin with a zero byte belong to slices of tensors, which are not supported.
            self._entries = {_text(key): _entry(value) for key, value in values.items() if key[:1] != b"\0"}
        self._shards: dict[int, npt.NDArray[np.uint8]] = {}

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raises KeyError if there is no tensor of this name."""
        return self._entries[name].shape

    def read(self, name: str) -> Tensor:
        """Return a tensor, read-only and mapped from its file; bfloat16 is converted to float32.

        Raises KeyError if there is no tensor of this name. Raises ModelError if the tensor is damaged, or if its
        type is not float32, float16, bfloat16, int32 or int64.
        """
        entry = self._entries[name]
        with _named(self._shard_path(entry.shard)):
            return self._read(name, entry)

    def _read(self, name: str, entry: _Entry) -> Tensor:
        if entry.is_sliced:
            raise _Damaged(f"{name} is saved in slices, which are not supported")
        if entry.dtype not in _DTYPES:
            raise _Damaged(
                f"{name} is {_OTHER_DTYPES.get(entry.dtype, f'of type {entry.dtype}')}, which is not supported"
            )
        dtype = np.dtype(_DTYPES[entry.dtype])
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise _Damaged(
                f"{name} has {entry.size} bytes, but shape {entry.shape} needs {dtype.itemsize} for each number"
            )
        shard = self._shard(entry.shard)
        stop = entry.offset + entry.size
        if stop > len(shard):
            raise _Damaged(f"{name} should end at byte {stop}, but the file has {len(shard)}")
        raw = shard[entry.offset : stop]
        if _masked_crc32c(raw) != entry.crc32c:
            raise _Damaged(f"{name} has a wrong checksum")
        # A tensor may begin at any byte. If its array is not aligned, np.require returns an aligned copy.
        values = np.require(np.frombuffer(raw, dtype), requirements="A").reshape(entry.shape)
        return (values.astype("<u4") << 16).view("<f4") if entry.dtype == _BFLOAT16 else values

    def _shard(self, index: int) -> npt.NDArray[np.uint8]:
        if index >= self._num_shards:
            raise _Damaged(f"the index has {self._num_shards} files of tensors, but refers to number {index}")
        if index not in self._shards:
            path = self._shard_path(index)
            is_empty = path.stat().st_size == 0  # an empty file cannot be mapped
            self._shards[index] = np.empty(0, np.uint8) if is_empty else np.memmap(path, np.uint8, "r")
        return self._shards[index]

    def _shard_path(self, index: int) -> Path:
        return Path(f"{self._prefix}.data-{index:05d}-of-{self._num_shards:05d}")


class _Damaged(Exception):
    """A problem in a file; `_named` adds the name of the file."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn exceptions inside the context into a ModelError that names the file."""
    try:
        yield
    except _Damaged as exc:
        raise ModelError(f"cannot read {path}: {exc}") from exc
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror or exc}") from exc


# -- the messages --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A BundleEntryProto: the type, shape and position of a tensor."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    is_sliced: bool


def _num_shards(header: bytes | None) -> int:
    """Return the number of files that hold the tensors, from a BundleHeaderProto."""
    if header is None:
        raise _Damaged("it has no header")
    fields = _fields(header)
    if _number(fields, 2) != 0:
        raise _Damaged("its numbers are big-endian, which is not supported")
    for version in fields.get(3, []):
        if (needed := _number(_fields(version), 2)) > _VERSION:
            raise _Damaged(f"its version is {needed}, only {_VERSION} is supported")
    return _not_negative(_number(fields, 1), "the number of files")


def _entry(value: bytes) -> _Entry:
    fields = _fields(value)
    return _Entry(
        dtype=_number(fields, 1),
        shape=_shape(fields.get(2, [])),
        shard=_not_negative(_number(fields, 3), "the number of a file"),
        offset=_not_negative(_number(fields, 4), "an offset"),
        size=_not_negative(_number(fields, 5), "a size"),
        crc32c=_number(fields, 6),
        is_sliced=7 in fields,
    )


def _shape(messages: list[int | bytes]) -> tuple[int, ...]:
    """Return the shape in a TensorShapeProto."""
    fields = _fields(messages[-1]) if messages else {}
    if _number(fields, 3) != 0:
        raise _Damaged("a tensor has no shape")
    sizes = [_not_negative(_number(_fields(dimension), 1), "a size in a shape") for dimension in fields.get(2, [])]
    # numpy limits the product of the sizes, even if one of them is 0.
    if len(sizes) > _MAX_DIMENSIONS or math.prod(max(size, 1) for size in sizes) >= 1 << 56:
        raise _Damaged("a tensor's shape is too large")
    return tuple(sizes)


def _fields(message: int | bytes) -> _Message:
    """Return the fields of a protobuf message by number, each with all its values."""
    if isinstance(message, int):
        raise _Damaged("a field must be a message, got a number")
    fields: _Message = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = _varint(message, at)
        elif key & 7 == 2:
            size, at = _varint(message, at)
            value, at = _bytes(message, at, size), at + size
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
            value, at = int.from_bytes(_bytes(message, at, size), "little"), at + size
        else:
            raise _Damaged(f"a message has a field of unknown kind {key & 7}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _number(fields: _Message, number: int) -> int:
    """Return a field that is a signed number, or 0 if the field is absent."""
    value = fields.get(number, [0])[-1]
    if isinstance(value, bytes):
        raise _Damaged("a field must be a number, got bytes")
    return value - (1 << 64) if value >> 63 else value


def _not_negative(value: int, what: str) -> int:
    if value < 0:
        raise _Damaged(f"{what} must not be negative, got {value}")
    return value


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as exc:
        raise _Damaged(f"a name is not valid UTF-8: {key!r}") from exc


# -- the table -----------------------------------------------------------------------------------------


def _read_index(path: Path) -> bytes:
    if (size := path.stat().st_size) > _MAX_INDEX_BYTES:
        raise _Damaged(f"an index may have at most {_MAX_INDEX_BYTES} bytes, this one has {size}")
    return path.read_bytes()


def _table(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in ascending order of the keys."""
    footer = file[-_FOOTER_SIZE:]
    if len(footer) < _FOOTER_SIZE or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise _Damaged("it is not the index of a checkpoint, or it is incomplete")
    blocks = file[:-_FOOTER_SIZE]
    _, _, at = _handle(footer, 0)  # the metaindex block, which TensorFlow leaves empty
    offset, size, _ = _handle(footer, at)
    last_key: bytes | None = None
    num_entries = end = 0
    for _, handle in _block(blocks, offset, size):
        offset, size, _ = _handle(handle, 0)
        if offset < end:
            raise _Damaged("its blocks overlap")
        end = offset + size
        for key, value in _block(blocks, offset, size):
            num_entries += 1
            if num_entries > _MAX_TENSORS:
                raise _Damaged(f"it has more than {_MAX_TENSORS} tensors")
            if last_key is not None and key <= last_key:
                raise _Damaged("its names are not in order")
            last_key = key
            yield key, value


def _block(blocks: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block. A key is stored as the part that differs from the key before it."""
    content = _bytes(blocks, offset, size + _TRAILER_SIZE)
    compression, crc32c = content[size], int.from_bytes(content[size + 1 :], "little")
    if _masked_crc32c(content[: size + 1]) != crc32c:
        raise _Damaged(f"its block at byte {offset} has a wrong checksum")
    if compression != 0:
        raise _Damaged(f"its blocks are compressed (type {compression}), which is not supported")
    # The entries are followed by the restart points, 4 bytes each, and the number of restart points.
    num_restarts = int.from_bytes(_bytes(content, size - 4, 4), "little")
    entries = _bytes(content, 0, size - 4 - 4 * num_restarts)
    at, key = 0, b""
    while at < len(entries):
        num_shared, at = _varint(entries, at)
        num_fresh, at = _varint(entries, at)
        num_value, at = _varint(entries, at)
        if num_shared > len(key) or num_shared + num_fresh > _MAX_NAME_BYTES:
            raise _Damaged("a name is too long")
        key = key[:num_shared] + _bytes(entries, at, num_fresh)
        at += num_fresh
        yield key, _bytes(entries, at, num_value)
        at += num_value


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Return a block's offset and size, and the position of the next byte."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return offset, size, at


# -- bytes ---------------------------------------------------------------------------------------------


def _bytes(data: bytes, at: int, size: int) -> bytes:
    """Return exactly `size` bytes from a position."""
    if at < 0 or size < 0 or at + size > len(data):
        raise _Damaged(f"{size} bytes at {at} are outside of its {len(data)} bytes")
    return data[at : at + size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a 64-bit number, stored with 7 bits in each byte, and the position of the next byte."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
    raise _Damaged("a number has no end")


def _masked_crc32c(data: bytes | npt.NDArray[np.uint8]) -> int:
    """Return the CRC-32C as LevelDB stores it: rotated, because a CRC of data that contains CRCs is weak."""
    crc32c = int(google_crc32c.value(data))
    return ((crc32c >> 15 | crc32c << 17) + 0xA282EAD8) & 0xFFFF_FFFF
