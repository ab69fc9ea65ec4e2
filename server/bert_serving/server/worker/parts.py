"""Encodes the parts of a batch, each with its own options, in the same forward passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from bert_serving.protocol import EncodeOptions, InvalidRequest, Rows, WorkerFailed
from bert_serving.protocol.workers import Part, PartResult, Rejected, Vectors

from .encoder import Encoder, EncodingError
from .micro_batches import PreparedText
from .sequences import RequestError


@dataclass(frozen=True, slots=True)
class TokenizedPart:
    """A part, and its texts ready for the model."""

    part: Part
    prepared: list[PreparedText]


def tokenize_parts(encoder: Encoder, parts: Sequence[Part]) -> list[TokenizedPart | Rejected]:
    """Return each part with its texts prepared, or why it is rejected.

    Parts with equal options share one call of `Encoder.prepare`.
    """
    found: dict[int, TokenizedPart | Rejected] = {}
    alike: dict[tuple[EncodeOptions, int | None], list[int]] = {}
    for i, part in enumerate(parts):
        # A part with spans gets a separate call, because these spans belong to its texts only.
        alike.setdefault((part.options, None if part.spans is None else i), []).append(i)
    for (options, _), indices in alike.items():
        texts = [text for i in indices for text in parts[i].texts]
        try:
            prepared = iter(encoder.prepare(texts, options, spans=parts[indices[0]].spans))
        except RequestError as exc:
            found.update(dict.fromkeys(indices, Rejected(InvalidRequest(str(exc)))))
            continue
        for i in indices:
            found[i] = _tokenized_or_rejected(parts[i], list(islice(prepared, len(parts[i].texts))))
    return [found[i] for i in range(len(parts))]


def _tokenized_or_rejected(part: Part, texts: list[PreparedText | RequestError]) -> TokenizedPart | Rejected:
    """Return the part with its texts, or its rejection if one of the texts has an error."""
    prepared = []
    for i, text in enumerate(texts):
        if isinstance(text, RequestError):
            return Rejected(InvalidRequest(str(text)), i)
        prepared.append(text)
    return TokenizedPart(part, prepared)


def part_results(
    encoder: Encoder, parts: Sequence[TokenizedPart | Rejected], dtype: np.dtype[np.floating]
) -> Generator[int, None, list[PartResult]]:
    """Compute all parts in the same forward passes; return their results at the end.

    Yields the number of tokens of each micro-batch when it is computed. dtype: the dtype of the vectors.
    """
    prepared = [text for part in parts if isinstance(part, TokenizedPart) for text in part.prepared]
    rows = iter((yield from encoder.forward_steps(prepared)))
    return [
        part
        if isinstance(part, Rejected)
        else _vectors_or_rejected(encoder, part, list(islice(rows, len(part.prepared))), dtype)
        for part in parts
    ]


def _vectors_or_rejected(
    encoder: Encoder,
    part: TokenizedPart,
    rows_of: list[Rows | EncodingError],
    dtype: np.dtype[np.floating],
) -> PartResult:
    """Return the vectors of a part, or its rejection if the model failed on one of its texts."""
    rows = []
    for i, of_text in enumerate(rows_of):
        if isinstance(of_text, EncodingError):
            return Rejected(WorkerFailed(str(of_text)), i)
        rows.append(of_text)
    is_ragged = part.prepared[0].is_ragged
    if part.prepared[0].plan.is_sparse:  # rows hold indices of terms, which float16 would round
        dtype = np.dtype(np.float32)
    vectors = np.concatenate(rows) if is_ragged else np.stack(rows)
    largest = np.finfo(dtype).max
    if np.abs(vectors).max(initial=0.0) > largest:
        return Rejected(
            WorkerFailed(f"the vector has a component beyond {largest}, the largest value of {dtype.name}")
        )
    texts, options = [prepared.text for prepared in part.prepared], part.part.options
    return Vectors(
        rows=vectors.astype(dtype, copy=False),
        num_tokens=[text.num_tokens for text in texts],
        truncated=[i for i, text in enumerate(texts) if text.truncated],
        counts=list(map(len, rows)) if is_ragged else None,
        tokens=[encoder.tokens(text) for text in texts] if options.show_tokens else None,
        offsets=[text.offsets for text in texts] if options.show_offsets else None,
    )
