"""The texts that models are compared with, or trained on: from files, or from Python's own manual."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..server.files.errors import FileError
from ..server.files.rows import REASON
from ..server.files.sources import Source
from .errors import TrainError

Say: TypeAlias = Callable[[str], None]

_MIN_CHARS = 20  # shorter lines of the manual are no sentences
_PAIR_COLUMNS = ("text_a", "text_b", "score")


def read_texts(
    inputs: Sequence[str], say: Say, *, text_column: str | None = None, limit: int | None = None
) -> list[str]:
    """Return the different texts of files, without empty ones. Raises TrainError.

    inputs, text_column: as of bert-serving-encode. say: gets a line for the user if rows cannot be read.
    limit: keep this many, chosen at random, always the same ones.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = _source(inputs, text_column, (), Path(folder))
            found = dict.fromkeys(str(text) for (text,) in _rows(source, [source.text_column], say))
    except FileError as exc:
        raise TrainError(str(exc)) from exc
    texts = [text for text in found if text.strip()]
    return _some(texts, limit)


def read_pairs(path: str, say: Say) -> tuple[list[str], list[str], list[float]]:
    """Return the first texts, the second texts and the scores of labelled pairs. Raises TrainError.

    path: a file with the columns text_a, text_b and score. say: gets a line for the user if rows cannot be read.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = _source([path], _PAIR_COLUMNS[0], _PAIR_COLUMNS, Path(folder))
            rows = list(_rows(source, _PAIR_COLUMNS, say))
    except FileError as exc:
        raise TrainError(str(exc)) from exc
    try:
        pairs = [(str(first), str(second), float(score)) for first, second, score in rows]
    except (TypeError, ValueError) as exc:
        raise TrainError(f"{path}: column score must hold numbers: {exc}") from exc
    if not pairs:
        raise TrainError(f"{path} holds no pairs")
    if wrong := [score for *_, score in pairs if not math.isfinite(score)]:
        raise TrainError(f"{path}: column score must hold finite numbers, got {wrong[0]}")
    first, second, scores = zip(*pairs, strict=True)
    return list(first), list(second), list(scores)


def texts_of_python(limit: int) -> list[str]:
    """Return sentences of the manual that comes with each Python, for a comparison without a file."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for topic in topics.values():
        for part in re.split(r"\n\s*\n|(?<=[.!?])\s", str(topic)):
            sentence = " ".join(part.split())
            if len(sentence) >= _MIN_CHARS and sentence[0].isalpha():
                found[sentence] = None
    return _some(list(found), limit)


def _some(texts: list[str], limit: int | None) -> list[str]:
    if limit is None or limit >= len(texts):
        return texts
    chosen = np.sort(np.random.default_rng(0).choice(len(texts), limit, replace=False))
    return [texts[i] for i in chosen]


def _source(inputs: Sequence[str], text_column: str | None, columns: Sequence[str], folder: Path) -> Source:
    return Source(
        inputs, form="auto", delimiter=None, text_column=text_column, columns=columns, output=folder / "unused"
    )


def _rows(source: Source, columns: Sequence[str], say: Say) -> Iterator[tuple[Any, ...]]:
    """Yield the values of the columns, of rows that can be read. Says how many others there are, and why."""
    num_left, first = 0, None
    for batch in source.batches():
        values = (batch[name].to_pylist() for name in (*columns, REASON))
        for *row, reason in zip(*values, strict=True):
            if reason is None and None not in row:
                yield tuple(row)
            else:
                num_left += 1
                first = first or reason or f"{columns[row.index(None)]} is missing"
    if num_left:
        say(f"rows that cannot be read are left out: {num_left}; the first: {first}")
