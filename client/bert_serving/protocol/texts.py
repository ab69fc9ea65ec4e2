"""What a list of texts must be. Clients check before they send, the broker checks what arrives."""

from __future__ import annotations

from typing import Any


def check_texts(texts: Any) -> bool:
    """Return whether the texts are tokenized, or raise what is wrong with them.

    texts: a non-empty list of one kind: non-empty strings, pairs of them, or non-empty lists of non-empty
    strings or of ids. Raises TypeError for a wrong type and ValueError for a wrong value; both name the place.
    """
    if not isinstance(texts, list):
        raise TypeError(f"texts must be a list of strings, got {_kind(texts)}")
    if not texts:
        raise ValueError("texts must not be empty")
    if isinstance(texts[0], list):
        for i, tokens in enumerate(texts):
            if not isinstance(tokens, list):
                raise TypeError(f"texts[{i}] must be a list of tokens like texts[0], got {_kind(tokens)}")
            if not tokens:
                raise ValueError(f"texts[{i}] has no token")
            if set(map(type, tokens)) != {int}:
                _check_strings(tokens, f"texts[{i}]")
            elif not -(2**63) <= min(tokens) <= max(tokens) < 2**63:  # more than JSON carries to the worker
                raise ValueError(f"texts[{i}] holds a number that is no token id")
        return True
    if isinstance(texts[0], dict):
        for i, pair in enumerate(texts):
            if not isinstance(pair, dict) or pair.keys() != {"text", "text_pair"}:
                raise TypeError(f'texts[{i}] must be {{"text": ..., "text_pair": ...}} like texts[0]')
        for key in ("text", "text_pair"):
            _check_strings([pair[key] for pair in texts], f"{key} of texts")
        return False
    _check_strings(texts, "texts")
    return False


def _check_strings(strings: list[Any], name: str) -> None:
    # Whole-list tests first: they run in C, and almost every list passes them.
    if not all(issubclass(kind, str) for kind in set(map(type, strings))):
        i = next(i for i, s in enumerate(strings) if not isinstance(s, str))
        raise TypeError(f"{name}[{i}] must be a string, got {_kind(strings[i])}")
    if "" in strings:
        raise ValueError(f"{name}[{strings.index('')}] is an empty string")
    joined = "".join(strings)
    if "\0" in joined:
        i = next(i for i, s in enumerate(strings) if "\0" in s)
        raise ValueError(f"{name}[{i}] contains a NUL character")
    if not joined.isascii() and has_lone_surrogate(joined):
        i = next(i for i, s in enumerate(strings) if has_lone_surrogate(s))
        raise ValueError(f"{name}[{i}] contains a lone surrogate, which is no Unicode text")


def has_lone_surrogate(text: str) -> bool:
    """Return whether a string, of JSON for example, is no Unicode text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
