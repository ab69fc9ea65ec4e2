"""Encodes the parts of a batch, each with its own options, in the same forward passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from bert_serving.protocol import EncodeOptions, InvalidRequest, Rows, ServingError, TextError, WorkerFailed
from bert_serving.protocol.workers import Part, PartResult, Rejected, Vectors

from .encoder import Encoder, EncodingError
from .micro_batches import MicroBatch, PreparedText
from .sequences import RequestError, TokenizedText

_STAND_IN = "a"
_MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class TokenizedPart:
    """A part, and its texts ready for the model.

    prepared: those that can be encoded. errors: by index, why the others cannot; only if the option on_error is
    "null". model: a text whose rows look like those of the part. It is one of `prepared`, unless there are none.
    """

    part: Part
    prepared: list[PreparedText]
    model: PreparedText
    errors: dict[int, InvalidRequest] = field(default_factory=dict)


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
    errors = {i: InvalidRequest(str(text)) for i, text in enumerate(texts) if isinstance(text, RequestError)}
    prepared = [text for text in texts if not isinstance(text, RequestError)]
    if errors and part.options.on_error != "null":
        index = next(iter(errors))
        return Rejected(errors[index], index)
    model = prepared[0] if prepared else _stand_in(encoder, part)
    if isinstance(model, RequestError):
        return Rejected(errors[0], 0)
    return TokenizedPart(part, prepared, model, errors)


def _stand_in(encoder: Encoder, part: Part) -> PreparedText | RequestError:
    """Return a text whose rows would look like those of the part, if none of its texts can be encoded."""
    return encoder.prepare([_STAND_IN], part.options, spans=None if part.spans is None else [[[0, 1]]])[0]


def part_results(
    encoder: Encoder,
    parts: Sequence[TokenizedPart | Rejected],
    dtype: np.dtype[np.floating],
    *,
    lanes: int = 1,
) -> Generator[list[MicroBatch], None, list[PartResult]]:
    """Let the caller compute all parts in the same forward passes; return their results at the end.

    Yields micro-batches, see `Encoder.forward_steps`. dtype: the dtype of the vectors.
    """
    prepared = [text for part in parts if isinstance(part, TokenizedPart) for text in part.prepared]
    rows = iter((yield from encoder.forward_steps(prepared, lanes=lanes)))
    return [
        part
        if isinstance(part, Rejected)
        else _vectors_or_rejected(encoder, part, list(islice(rows, len(part.prepared))), dtype)
        for part in parts
    ]


def _vectors_or_rejected(
    encoder: Encoder,
    part: TokenizedPart,
    computed: list[Rows | EncodingError],
    dtype: np.dtype[np.floating],
) -> PartResult:
    """Return the vectors of a part, or its rejection if the model failed on one of its texts.

    computed: the rows of each prepared text.
    """
    options, model = part.part.options, part.model
    if model.plan.is_sparse:  # rows hold indices of terms, which float16 would round
        dtype = np.dtype(np.float32)
    texts: list[TokenizedText | None] = []
    rows: list[Rows] = []
    errors: dict[int, ServingError] = dict(part.errors)
    done = iter(zip(part.prepared, computed, strict=True))
    for i in range(len(part.part.texts)):
        if i not in part.errors:
            prepared, of_text = next(done)
            error = _error_of(of_text, dtype)
            if error is None:
                assert not isinstance(of_text, EncodingError)
                texts.append(prepared.text)
                rows.append(of_text)
                continue
            if options.on_error != "null":
                return Rejected(error, i)
            errors[i] = error
        texts.append(None)
        rows.append(_no_rows(model))
    vectors = (np.concatenate(rows) if model.is_ragged else np.stack(rows)).astype(dtype, copy=False)
    return Vectors(
        rows=vectors,
        num_tokens=[text.num_tokens if text else 0 for text in texts],
        truncated=[i for i, text in enumerate(texts) if text and text.truncated],
        counts=list(map(len, rows)) if model.is_ragged else None,
        tokens=[encoder.tokens(text) if text else [] for text in texts] if options.show_tokens else None,
        offsets=[text.offsets if text else [] for text in texts] if options.show_offsets else None,
        errors=[_text_error(i, error) for i, error in sorted(errors.items())],
    )


def _error_of(rows: Rows | EncodingError, dtype: np.dtype[np.floating]) -> WorkerFailed | None:
    """Return why the rows of a text cannot be sent, or None."""
    if isinstance(rows, EncodingError):
        return WorkerFailed(str(rows))
    largest = np.finfo(dtype).max
    if dtype != np.float32 and np.abs(rows).max(initial=0.0) > largest:
        return WorkerFailed(f"the vector has a component beyond {largest}, the largest value of {dtype.name}")
    return None


def _no_rows(prepared: PreparedText) -> Rows:
    """Return what a text with an error has in place of its rows: none, or NaN where each text has one row."""
    if not prepared.is_ragged:
        return np.full(prepared.plan.width, np.nan, np.float32)
    return np.zeros((0, 2 if prepared.plan.is_sparse else prepared.plan.width), np.float32)


def _text_error(index: int, error: ServingError) -> TextError:
    return {"index": index, "code": error.code, "message": error.message[:_MAX_REASON_CHARS]}
