"""Writes TensorFlow checkpoints, including invalid ones that TensorFlow would not write."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

GOOGLE_BERT = Path(__file__).parents[1] / "fixtures" / "google_bert"
DTYPES = {"float32": 1, "int32": 3, "int64": 9, "float16": 19}

Entries = Iterable[tuple[bytes, bytes]]


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write a checkpoint of one shard; return its prefix."""
    data = b""
    entries = [(b"", header())]
    for name, value in sorted(tensors.items()):
        raw = value.tobytes()
        entries.append(
            (
                name.encode(),
                entry(DTYPES[value.dtype.name], value.shape, 0, len(data), len(raw), masked_crc32c(raw)),
            )
        )
        data += raw
    Path(f"{prefix}.index").write_bytes(table([entries]))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def table(blocks: Iterable[Entries], *, compression: int = 0, overlap: bool = False) -> bytes:
    """Return the content of an index file (a sorted table) with these blocks of entries."""
    file = b""
    handles: list[tuple[bytes, bytes]] = []
    for entries in blocks:
        content = block(entries)
        handles.append((str(len(handles)).encode(), varint(0 if overlap else len(file)) + varint(len(content))))
        file += trailed(content, compression)
    meta = varint(len(file)) + varint(8)
    file += trailed(block([]), 0)
    footer = meta + varint(len(file)) + varint(len(block(handles)))
    file += trailed(block(handles), 0)
    return file + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def block(entries: Entries) -> bytes:
    """Return a block of entries with prefix-compressed names."""
    content, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return content + struct.pack("<II", 0, 1)


def trailed(content: bytes, compression: int) -> bytes:
    """Return a block, followed by its type of compression and its checksum."""
    content += bytes([compression])
    return content + struct.pack("<I", masked_crc32c(content))


def header(num_shards: int = 1, *, endianness: int = 0, min_consumer: int = 0) -> bytes:
    """Return a BundleHeaderProto."""
    version = number(1, 1) + number(2, min_consumer)
    return number(1, num_shards) + number(2, endianness) + message(3, version)


def entry(dtype: int, shape: Iterable[int], shard: int, offset: int, size: int, crc32c: int) -> bytes:
    """Return a BundleEntryProto."""
    sizes = b"".join(message(2, number(1, size)) for size in shape)
    where = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, dtype) + message(2, sizes) + where + b"\x35" + struct.pack("<I", crc32c)


def number(field: int, value: int) -> bytes:
    """Return a field of a protocol buffer that holds a whole number."""
    return varint(field << 3) + varint(value % (1 << 64))


def message(field: int, value: bytes) -> bytes:
    """Return a field of a protocol buffer that holds bytes."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Return the number with 7 bits in each byte, the lowest bits first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def masked_crc32c(data: bytes) -> int:
    """Return the checksum as TensorFlow writes it: CRC-32C, rotated, plus a constant."""
    crc32c: int = google_crc32c.value(data)
    return ((crc32c >> 15 | crc32c << 17) + 0xA282EAD8) & 0xFFFF_FFFF
