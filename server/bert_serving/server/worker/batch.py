"""The parts of a batch, each with options of its own, through the encoder together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from bert_serving.protocol import (
    EncodeOptions,
    InvalidRequest,
    Part,
    PartResult,
    Rejected,
    Rows,
    Vectors,
    WorkerFailed,
)

from .compute import PreparedText
from .encoder import Encoder, EncodingError
from .sequences import RequestError


@dataclass(frozen=True, slots=True)
class TokenizedPart:
    """A part with a task for each of its texts."""

    part: Part
    tasks: list[PreparedText]


def prepare_parts(encoder: Encoder, parts: Sequence[Part]) -> list[TokenizedPart | Rejected]:
    """Return each part ready for the model, or why it is rejected. Parts with equal options are one call."""
    found: dict[int, TokenizedPart | Rejected] = {}
    alike: dict[tuple[EncodeOptions, int | None], list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault((part.options, None if part.spans is None else i), []).append(i)
    for (options, _), indices in alike.items():
        texts = [text for i in indices for text in parts[i].texts]
        try:
            prepared = iter(encoder.prepare(texts, options, spans=parts[indices[0]].spans))
        except RequestError as exc:
            found.update(dict.fromkeys(indices, Rejected(InvalidRequest(str(exc)))))
            continue
        for i in indices:
            found[i] = _part(parts[i], list(islice(prepared, len(parts[i].texts))))
    return [found[i] for i in range(len(parts))]


def _part(part: Part, prepared: list[PreparedText | RequestError]) -> TokenizedPart | Rejected:
    tasks = []
    for i, task in enumerate(prepared):
        if isinstance(task, RequestError):
            return Rejected(InvalidRequest(str(task)), i)
        tasks.append(task)
    return TokenizedPart(part, tasks)


def encode_parts(
    encoder: Encoder, prepared: Sequence[TokenizedPart | Rejected], dtype: np.dtype[np.floating[Any]]
) -> list[PartResult]:
    """Return what becomes of each part, all of them in the same forward passes. dtype: of the vectors."""
    tasks = [task for part in prepared if isinstance(part, TokenizedPart) for task in part.tasks]
    answers = iter(encoder.forward(tasks))
    return [
        part
        if isinstance(part, Rejected)
        else _outcome(encoder, part, list(islice(answers, len(part.tasks))), dtype)
        for part in prepared
    ]


def _outcome(
    encoder: Encoder,
    prepared: TokenizedPart,
    answers: list[Rows | EncodingError],
    dtype: np.dtype[np.floating[Any]],
) -> PartResult:
    rows = []
    for i, answer in enumerate(answers):
        if isinstance(answer, EncodingError):
            return Rejected(WorkerFailed(str(answer)), i)
        rows.append(answer)
    is_ragged = prepared.tasks[0].is_ragged
    if prepared.tasks[0].recipe.is_sparse:  # the number of a term is no number to round
        dtype = np.dtype(np.float32)
    vectors = np.concatenate(rows) if is_ragged else np.stack(rows)
    largest = np.finfo(dtype).max
    if np.abs(vectors).max(initial=0.0) > largest:
        return Rejected(WorkerFailed(f"the model gives components beyond {largest}, the largest {dtype.name}"))
    texts, options = [task.text for task in prepared.tasks], prepared.part.options
    return Vectors(
        rows=vectors.astype(dtype, copy=False),
        num_tokens=[text.num_tokens for text in texts],
        truncated=[i for i, text in enumerate(texts) if text.truncated],
        counts=list(map(len, rows)) if is_ragged else None,
        tokens=[encoder.tokens(text) for text in texts] if options.show_tokens else None,
        offsets=[text.offsets for text in texts] if options.show_offsets else None,
    )
