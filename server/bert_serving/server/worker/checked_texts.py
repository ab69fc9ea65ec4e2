"""Checks of the texts that a program passes to an Encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bert_serving.protocol import Text, has_lone_surrogate, shortened


def checked_texts(texts: Sequence[Text]) -> list[Text]:
    """Return the texts as a list. Raises TypeError or ValueError for a malformed text.

    The empty string is accepted, unlike in a request.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a list of strings, got {type(texts).__name__}")
    texts = list(texts)
    for i, text in enumerate(texts):
        parts = text if isinstance(text, list) else text.values() if isinstance(text, dict) else [text]
        if not ({*map(type, parts)} <= {int} and isinstance(text, list)) and not all(
            isinstance(part, str) for part in parts
        ):
            raise TypeError(
                f"texts[{i}] must be a string, a pair, or a list of tokens or ids, got {shortened(text)}"
            )
        if any(has_lone_surrogate(part) for part in parts if isinstance(part, str)):
            raise ValueError(f"texts[{i}] contains a lone surrogate, which is not Unicode text")
    return texts
