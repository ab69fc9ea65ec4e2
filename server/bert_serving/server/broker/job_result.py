"""The vectors of a job: stored slice by slice as workers return them, sent in one reply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from bert_serving.protocol import Rows, TextError, split_rows
from bert_serving.protocol.workers import Vectors

TOKEN_BYTES = 160  # a token as a string, in the result and in the reply
OFFSET_BYTES = 240  # the start and the end of a token, in the result and in the reply
ERROR_BYTES = 640  # why a text could not be encoded, in the result and in the reply

#: Whether each text may have several vectors, the shape of one vector, and the number format.
Layout: TypeAlias = tuple[bool, tuple[int, ...], np.dtype[Any]]


def layout_of(vectors: Vectors) -> Layout:
    """Return what must be the same for all vectors of a job."""
    return vectors.counts is not None, vectors.rows.shape[1:], vectors.rows.dtype


@dataclass(slots=True)
class JobResult:
    """What workers have returned for the texts of a job.

    model: fingerprint of the model that computed the vectors. layout: see `layout_of`. Both are None until the
    first vectors are stored. num_bytes: size of the vectors that are stored so far. num_more_bytes: size of their
    tokens and offsets. rows: one row for each text. ragged: one array for each text; used instead of `rows` if
    `Vectors.counts` is set. tokens, offsets: one entry for each text, if the worker sends them. truncated: indices
    of the truncated texts. errors: the texts that could not be encoded. num_tokens: number of tokens of each text.
    """

    num_texts: int
    model: str | None = None
    layout: Layout | None = None
    num_bytes: int = 0
    num_more_bytes: int = 0
    rows: Rows | None = None
    ragged: list[Rows] | None = None
    tokens: list[Sequence[str]] | None = None
    offsets: list[Sequence[Sequence[int]] | None] | None = None
    truncated: list[int] = field(default_factory=list)
    errors: list[TextError] = field(default_factory=list)
    num_tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = [0] * self.num_texts

    def bytes_with(self, vectors: Vectors) -> int:
        """Return the size in bytes that the result will have, judging by `vectors`.

        If `vectors` has counts, only the stored vectors and `vectors` are included: the other sizes are not known.
        """
        more = self.num_more_bytes + _more_bytes(vectors)
        if vectors.counts is not None:
            return self.num_bytes + vectors.rows.nbytes + more
        return self.num_texts * math.prod(vectors.rows.shape[1:]) * vectors.rows.itemsize + more

    def store(self, start: int, vectors: Vectors) -> None:
        """Copy the vectors of consecutive texts, beginning with text `start`.

        If these are all texts, their vectors are not copied.
        """
        stop = start + len(vectors.num_tokens)
        self.layout = layout_of(vectors)
        if vectors.counts is None:
            if stop - start == self.num_texts:
                self.rows = vectors.rows
            else:
                if self.rows is None:
                    self.rows = np.empty((self.num_texts, *vectors.rows.shape[1:]), vectors.rows.dtype)
                self.rows[start:stop] = vectors.rows
        else:
            if self.ragged is None:
                self.ragged = [vectors.rows[:0]] * self.num_texts
            self.ragged[start:stop] = split_rows(vectors.rows, vectors.counts)
        if vectors.tokens is not None:
            self.tokens = self.tokens or [()] * self.num_texts
            self.tokens[start:stop] = vectors.tokens
        if vectors.offsets is not None:
            self.offsets = self.offsets or [None] * self.num_texts
            self.offsets[start:stop] = vectors.offsets
        self.num_tokens[start:stop] = vectors.num_tokens
        if vectors.truncated:
            self.truncated += [start + i for i in vectors.truncated]
        if vectors.errors:
            self.errors += [{**error, "index": start + error["index"]} for error in vectors.errors]
        self.num_bytes += vectors.rows.nbytes
        self.num_more_bytes += _more_bytes(vectors)

    def padded_bytes(self, length: int | None) -> int:
        """Return the size in bytes of the array that `padded(length)` would return."""
        assert self.ragged is not None
        return math.prod(self._padded_shape(length)) * self.ragged[0].itemsize

    def padded(self, length: int | None) -> Rows:
        """Return ragged rows as (B, T, D), padded with zeros. T: rows of the longest text, or `length` if more."""
        assert self.ragged is not None
        rows = np.zeros(self._padded_shape(length), self.ragged[0].dtype)
        for i, of_text in enumerate(self.ragged):
            rows[i, : len(of_text)] = of_text
        return rows

    def _padded_shape(self, length: int | None) -> tuple[int, int, int]:
        assert self.ragged is not None
        longest = max(map(len, self.ragged))
        return len(self.ragged), max(longest, length or 0), self.ragged[0].shape[1]

    def joined(self) -> tuple[Rows, list[int]]:
        """Return (the ragged rows of all texts in one array, number of rows of each text)."""
        assert self.ragged is not None
        return np.concatenate(self.ragged), list(map(len, self.ragged))


def _more_bytes(vectors: Vectors) -> int:
    """Return the estimated size in bytes of the tokens, the offsets and the errors."""
    size = TOKEN_BYTES * (vectors.tokens is not None) + OFFSET_BYTES * (vectors.offsets is not None)
    return (size * sum(vectors.num_tokens) if size else 0) + ERROR_BYTES * len(vectors.errors)
