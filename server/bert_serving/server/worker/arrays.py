"""Combines the rows of several texts into one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bert_serving.protocol import Rows


def dense(sparse: Sequence[Rows], num_terms: int) -> Rows:
    """Return the weights of all terms as (B, V), with 0 for the terms that a text does not have.

    sparse: for each text, rows of (index of a term, weight).
    """
    rows = np.zeros((len(sparse), num_terms), dtype=np.float32)
    for row, terms in zip(rows, sparse, strict=True):
        row[terms[:, 0].astype(np.int64)] = terms[:, 1]
    return rows


def padded(ragged: Sequence[Rows]) -> Rows:
    """Return the rows of texts of different lengths as (B, T, D), with zeros after the end of each text."""
    rows = np.zeros((len(ragged), max(map(len, ragged)), ragged[0].shape[1]), dtype=np.float32)
    for i, of_text in enumerate(ragged):
        rows[i, : len(of_text)] = of_text
    return rows
