"""Vectors of texts that were computed before, and the keys by which equal texts are found. Does no I/O."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, repeat
from typing import TypeAlias

import numpy as np
from bert_serving.protocol import EncodeOptions, Rows, Text
from bert_serving.protocol.workers import Vectors

#: What must be equal for equal vectors: the number of the options, and the text.
Key: TypeAlias = "tuple[int, Hashable]"

_ENTRY_BYTES = 512  # the objects of an entry in the cache: key, array, places in dicts
_kinds = count(1)


@lru_cache(maxsize=1024)
def kind_of(options: EncodeOptions) -> int:
    """Return a number for the options, without what does not change vectors. A number is never used again."""
    plain = replace(options, show_usage=False, on_error="error")
    return next(_kinds) if plain == options else kind_of(plain)


def hashable(texts: Sequence[Text]) -> Sequence[Hashable] | None:
    """Return the texts as keys for a dict: strings as they are; None if one of the texts was sent as tokens."""
    types = set(map(type, texts))
    if types == {str}:
        return texts  # type: ignore[return-value]
    if list in types:
        return None
    return [(text["text"], text["text_pair"]) if isinstance(text, dict) else str(text) for text in texts]


def keys_of(kind: int, texts: Sequence[Text]) -> list[Key] | None:
    """Return the key of each text; None if one of them was sent as tokens."""
    keys = hashable(texts)
    return None if keys is None else list(zip(repeat(kind), keys, strict=False))


@dataclass(frozen=True, slots=True)
class _Cached:
    row: Rows  # (1, D)
    num_tokens: int
    is_truncated: bool
    num_bytes: int


class VectorCache:
    """The vectors of texts that were computed before; the ones that were used least recently are dropped.

    max_bytes: limit for the keys and the vectors; 0: nothing is stored. num_bytes: what they take now. num_hits,
    num_misses: texts that were found, and that were not. The caller must clear the cache when the model changes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = self.num_hits = self.num_misses = 0
        self._entries: OrderedDict[Key, _Cached] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drop all vectors."""
        self._entries.clear()
        self.num_bytes = 0

    def find(self, kind: int, texts: Sequence[Text]) -> list[tuple[int, Vectors]]:
        """Return (index of the first text, vectors) for each run of texts whose vectors are stored."""
        keys = keys_of(kind, texts) if self.max_bytes else None
        found: list[tuple[int, list[_Cached]]] = []
        for i, key in enumerate(keys or ()):
            entry = self._entries.get(key)
            if entry is None:
                self.num_misses += 1
                continue
            self._entries.move_to_end(key)
            self.num_hits += 1
            if found and found[-1][0] + len(found[-1][1]) == i:
                found[-1][1].append(entry)
            else:
                found.append((i, [entry]))
        return [(start, _joined(entries)) for start, entries in found]

    def add(self, kind: int, texts: Sequence[Text], vectors: Vectors) -> None:
        """Store the vectors of texts, apart from those that could not be encoded."""
        keys = keys_of(kind, texts) if self.max_bytes and vectors.counts is None else None
        wrong, truncated = {error["index"] for error in vectors.errors}, set(vectors.truncated)
        for i, key in enumerate(keys or ()):
            if i not in wrong:
                self._put(key, vectors.rows[i : i + 1], vectors.num_tokens[i], is_truncated=i in truncated)

    def _put(self, key: Key, row: Rows, num_tokens: int, *, is_truncated: bool) -> None:
        text = key[1]
        strings = text if isinstance(text, tuple) else (text,)
        num_bytes = _ENTRY_BYTES + row.nbytes + sum(map(sys.getsizeof, strings))
        old = self._entries.pop(key, None)
        self.num_bytes -= 0 if old is None else old.num_bytes
        if num_bytes > self.max_bytes:
            return
        self._entries[key] = _Cached(row.copy(), num_tokens, is_truncated, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].num_bytes


def _joined(entries: Sequence[_Cached]) -> Vectors:
    return Vectors(
        np.concatenate([entry.row for entry in entries]),
        [entry.num_tokens for entry in entries],
        [i for i, entry in enumerate(entries) if entry.is_truncated],
    )
