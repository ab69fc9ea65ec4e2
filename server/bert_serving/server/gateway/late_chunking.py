"""Late chunking (Günther et al. 2024) of texts that are parts of one long text, as in Jina's API."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from bert_serving.protocol import EncodeReply, InvalidRequest, Rows, Text, options_from_json

from .errors import Unprocessable
from .service import Service
from .texts import Names

_MAX_PARTS = 1024  # as many spans may a text have


async def chunk_vectors(
    service: Service, texts: Sequence[object], names: Names, **options: object
) -> tuple[Rows, EncodeReply]:
    """Return one vector for each text, (B, D) float32, and the whole reply.

    The model reads the texts as one, with blanks between them, and each vector is pooled from the tokens of its
    text. A text with an error is left out, and has NaN. options: as in Service.encode.
    Raises ServingError or TimeoutError: InvalidRequest if a text is no string or is blank, if there are too many
    texts, or if they are too long together; WrongModel if the model is a reranker.
    """
    readable = await service.readable(texts, names)
    parts = _parts(readable, service, names)
    try:
        checked = options_from_json(
            {**options, "truncate": "right", "long_text": "chunk", "ragged": True, "pairs": False}
        )
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(str(exc)) from exc
    if not 1 <= len(parts) <= _MAX_PARTS:
        raise Unprocessable(
            f"{names.whole} must have 1 to {_MAX_PARTS} texts with late_chunking, got {len(parts)}"
        )
    ends = accumulate(len(part) + 1 for part in parts.values())
    spans = [[(end - 1 - len(part), end - 1) for end, part in zip(ends, parts.values(), strict=True)]]
    reply = await service.with_on_error("error").encode_reply(
        [" ".join(parts.values())], checked, spans, names=Names(others={0: f"the whole of {names.whole}"})
    )
    await service.check_is_no_reranker(reply)
    rows = np.full((len(readable), reply.rows.shape[1]), np.nan, np.float32)
    rows[list(parts)] = reply.rows
    return rows, reply


def _parts(texts: Sequence[Text], service: Service, names: Names) -> dict[int, str]:
    """Return the texts without an error, by their index. Raises InvalidRequest, or notes the error of a text."""
    parts: dict[int, str] = {}
    for i, text in enumerate(texts):
        if i in service.notes.errors:
            continue
        if isinstance(text, str) and text.strip():
            parts[i] = text
            continue
        reason = "has no token" if isinstance(text, str) else "must be a string with late_chunking"
        if service.call.on_error != "null":
            raise InvalidRequest(f"{names.whole}[{i}] {reason}")
        service.notes.add_error(i, InvalidRequest(reason))
    return parts
