"""Check the texts of a request. Clients check before they send; the broker checks what it receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from .errors import PayloadTooLarge

#: The longest string. A worker reads at most a quarter of it, or half of it with long_text "chunk".
MAX_TEXT_CHARS = 4 << 20

_ID_LIMIT = 1 << 31  # no vocabulary is larger


def check_texts(texts: object, *, may_be_empty: bool = False, may_be_mixed: bool = False) -> bool:
    """Return True if the texts are lists of tokens, False if they are strings or pairs of strings.

    texts must be a non-empty list whose items are all of one kind: non-empty strings; {"text", "text_pair"} of
    such strings; non-empty lists of such strings; or non-empty lists of ids, which are whole
    numbers from 0 and below 2**31. may_be_empty: texts and parts of pairs may be empty strings. may_be_mixed: the
    items may be of several kinds.
    Raises TypeError for a wrong type, ValueError for a wrong value, and PayloadTooLarge for a string of more than
    MAX_TEXT_CHARS characters. The message names the item.
    """
    if not isinstance(texts, list):
        raise TypeError(f"texts must be a list of strings, got {_kind(texts)}")
    if not texts:
        raise ValueError("texts must not be empty")
    if may_be_mixed and len(kinds := set(map(type, texts))) > 1:
        try:
            for kind in kinds:
                _check_alike([text for text in texts if type(text) is kind], 0, may_be_empty=may_be_empty)
        except (TypeError, ValueError):
            for i, text in enumerate(texts):  # raises the same error, with the index of the text in the request
                _check_alike([text], i, may_be_empty=may_be_empty)
        return False
    _check_alike(texts, 0, may_be_empty=may_be_empty)
    return isinstance(texts[0], list)


def _check_alike(texts: list[Any], start: int, *, may_be_empty: bool) -> None:
    """Check texts of one kind. start: the index of the first one in the request."""
    if isinstance(texts[0], list):
        for i, tokens in enumerate(texts, start):
            if not isinstance(tokens, list):
                raise TypeError(f"texts[{i}] must be a list of tokens like texts[0], got {_kind(tokens)}")
            if not tokens:
                raise ValueError(f"texts[{i}] has no token")
            if set(map(type, tokens)) != {int}:
                _check_strings(tokens, f"texts[{i}]")
            elif not 0 <= min(tokens) <= max(tokens) < _ID_LIMIT:
                raise ValueError(f"texts[{i}] contains a number that is not a token id")
    elif isinstance(texts[0], dict):
        for i, pair in enumerate(texts, start):
            if not isinstance(pair, dict) or pair.keys() != {"text", "text_pair"}:
                raise TypeError(f'texts[{i}] must be {{"text": ..., "text_pair": ...}} like texts[0]')
        for key in ("text", "text_pair"):
            _check_strings([pair[key] for pair in texts], f"{key} of texts", start, may_be_empty=may_be_empty)
    else:
        _check_strings(texts, "texts", start, may_be_empty=may_be_empty)


def _check_strings(strings: list[Any], name: str, start: int = 0, *, may_be_empty: bool = False) -> None:
    # These checks are fast, because C code reads the whole list. Only a failed check searches for the wrong item.
    if not _are_strings(strings):
        i = next(i for i, s in enumerate(strings) if not isinstance(s, str))
        raise TypeError(f"{name}[{start + i}] must be a string, got {_kind(strings[i])}")
    if not may_be_empty and "" in strings:
        raise ValueError(f"{name}[{start + strings.index('')}] is an empty string")
    joined = "".join(strings)
    if len(joined) > MAX_TEXT_CHARS:
        _check_lengths(strings, name, start)
    if "\0" in joined:
        i = next(i for i, s in enumerate(strings) if "\0" in s)
        raise ValueError(f"{name}[{start + i}] contains a NUL character")
    if not joined.isascii() and has_lone_surrogate(joined):
        i = next(i for i, s in enumerate(strings) if has_lone_surrogate(s))
        raise ValueError(f"{name}[{start + i}] contains a lone surrogate, which is not Unicode text")


def _check_lengths(strings: Sequence[str], name: str, start: int) -> None:
    lengths = list(map(len, strings))
    if (longest := max(lengths)) > MAX_TEXT_CHARS:
        i = lengths.index(longest)
        raise PayloadTooLarge(f"{name}[{start + i}] may have at most {MAX_TEXT_CHARS} characters, got {longest}")


def _are_strings(values: Sequence[object]) -> TypeGuard[list[str]]:
    kinds = set(map(type, values))
    return kinds == {str} or all(issubclass(kind, str) for kind in kinds)


def has_lone_surrogate(text: str) -> bool:
    """Return whether a string contains half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
