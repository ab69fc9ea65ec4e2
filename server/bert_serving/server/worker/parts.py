"""Encodes the parts of a batch, each with its own options, in the same forward passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from bert_serving.protocol import EncodeOptions, InvalidRequest, Rows, ServingError, TextError, WorkerFailed
from bert_serving.protocol.workers import Part, PartResult, Rejected, Vectors

from .encoder import Encoder, EncodingError
from .micro_batches import PreparedText
from .sequences import RequestError

_STAND_IN = "a"
_MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class TokenizedPart:
    """A part, and its texts ready for the model.

    errors: by index, why a text cannot be encoded, if the option on_error is "null". A stand-in is computed then.
    """

    part: Part
    prepared: list[PreparedText]
    errors: dict[int, ServingError] = field(default_factory=dict)


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
            found[i] = _tokenized_or_rejected(encoder, parts[i], list(islice(prepared, len(parts[i].texts))))
    return [found[i] for i in range(len(parts))]


def _tokenized_or_rejected(
    encoder: Encoder, part: Part, texts: list[PreparedText | RequestError]
) -> TokenizedPart | Rejected:
    """Return the part with its texts, or its rejection if one of the texts has an error."""
    prepared: list[PreparedText] = []
    errors: dict[int, ServingError] = {}
    for i, text in enumerate(texts):
        if not isinstance(text, RequestError):
            prepared.append(text)
            continue
        error = InvalidRequest(str(text))
        stand_in = _stand_in(encoder, part) if part.options.on_error == "null" else text
        if isinstance(stand_in, RequestError):
            return Rejected(error, i)
        prepared.append(stand_in)
        errors[i] = error
    return TokenizedPart(part, prepared, errors)


def _stand_in(encoder: Encoder, part: Part) -> PreparedText | RequestError:
    """Return a text that has rows like the others of the part. They are replaced when they are computed."""
    return encoder.prepare([_STAND_IN], part.options, spans=None if part.spans is None else [[[0, 1]]])[0]


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
    options, errors = part.part.options, dict(part.errors)
    first = part.prepared[0]
    rows = []
    for i, of_text in enumerate(rows_of):
        if isinstance(of_text, EncodingError):
            errors[i] = WorkerFailed(str(of_text))
            if options.on_error != "null":
                return Rejected(errors[i], i)
        rows.append(_no_rows(first) if i in errors or isinstance(of_text, EncodingError) else of_text)
    if first.plan.is_sparse:  # rows hold indices of terms, which float16 would round
        dtype = np.dtype(np.float32)
    vectors = np.concatenate(rows) if first.is_ragged else np.stack(rows)
    largest = np.finfo(dtype).max
    if np.abs(vectors).max(initial=0.0) > largest:
        return Rejected(
            WorkerFailed(f"the vector has a component beyond {largest}, the largest value of {dtype.name}")
        )
    vectors = vectors.astype(dtype, copy=False)
    if errors and not first.is_ragged:
        vectors[list(errors)] = np.nan
    texts = [None if i in errors else prepared.text for i, prepared in enumerate(part.prepared)]
    return Vectors(
        rows=vectors,
        num_tokens=[text.num_tokens if text else 0 for text in texts],
        truncated=[i for i, text in enumerate(texts) if text and text.truncated],
        counts=list(map(len, rows)) if first.is_ragged else None,
        tokens=[encoder.tokens(text) if text else [] for text in texts] if options.show_tokens else None,
        offsets=[text.offsets if text else [] for text in texts] if options.show_offsets else None,
        errors=[_text_error(i, error) for i, error in errors.items()],
    )


def _no_rows(prepared: PreparedText) -> Rows:
    """Return what a text with an error has in place of its rows: none, or zeros where each text has one row."""
    if not prepared.is_ragged:
        return np.zeros(prepared.plan.width, np.float32)
    return np.zeros((0, 2 if prepared.plan.is_sparse else prepared.plan.width), np.float32)


def _text_error(index: int, error: ServingError) -> TextError:
    return {"index": index, "code": error.code, "message": error.message[:_MAX_REASON_CHARS]}
