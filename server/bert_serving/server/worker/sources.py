"""Splits texts into sources of word ids. A source is a string, or a list of tokens or ids. A pair has two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from bert_serving.protocol import Text

from .excerpts import ReadingLimit
from .sequences import NO_OFFSETS, Range

_SEPARATOR = "|||"


class SourceString(NamedTuple):
    """A string to tokenize, and where it lies in its text.

    start: index in the text of the string's first character; negative if a prompt precedes the text.
    original_indices: maps each lower-cased character to its index in the string before lower-casing; None if
    both strings have the same length. unread: the characters of the text that were left out of a very long string.
    """

    string: str
    start: int
    original_indices: list[int] | None = None
    unread: Range | None = None

    def range_in_text(self, start: int, stop: int) -> Range:
        """Return the characters of the text for a range of the string; NO_OFFSETS if all of it is prompt."""
        if stop <= start:
            return NO_OFFSETS
        if self.original_indices is not None:
            start, stop = self.original_indices[start], self.original_indices[stop - 1] + 1
        start, stop = max(0, start + self.start), stop + self.start
        return (start, stop) if stop > start else NO_OFFSETS


#: Where word ids come from: a string is tokenized, tokens are looked up in the vocabulary, ids are taken as given.
Source: TypeAlias = SourceString | list[str] | list[int]


def split_text(text: Text, limit: ReadingLimit, *, prompt: str, pairs: bool, lower: bool) -> Sequence[Source]:
    """Return the one source of a text, or the two sources of a pair.

    limit: of a very long string, only limit.max_chars characters are used. prompt: put before the (first) string.
    pairs: whether `|||` separates the strings of a pair. lower: lower-case strings. The rules for `|||` are those
    of bert-as-service (extract_features.py).
    """
    if isinstance(text, dict):
        first = _source_string(prompt + text["text"], -len(prompt), limit, lower)
        return [first, _source_string(text["text_pair"], 0, limit, lower)]
    if isinstance(text, list):
        if pairs and _SEPARATOR in text:
            at = text.index(_SEPARATOR)  # type: ignore[arg-type]
            return [text[:at], text[at + 1 :]]
        return [text]
    # bert-as-service matches ^(.*) \|\|\| (.*)$ on the stripped text. So the last separator divides the text, and
    # a text of several lines is not a pair, since a dot does not match a newline.
    if pairs and f" {_SEPARATOR} " in text and "\n" not in (stripped := text.strip()):
        before, separator, after = stripped.rpartition(f" {_SEPARATOR} ")
        if separator:
            start = len(text) - len(text.lstrip())
            second_start = start + len(before) + len(separator)
            first = _source_string(prompt + before, start - len(prompt), limit, lower)
            return [first, _source_string(after, second_start, limit, lower)]
    return [_source_string(prompt + text, -len(prompt), limit, lower)]


def _source_string(string: str, start: int, limit: ReadingLimit, lower: bool) -> SourceString:
    whole, string = string, limit.excerpt(string, limit.max_chars)
    unread = None
    if num_unread := len(whole) - len(string):
        unread_start = start if limit.from_end else start + len(string)
        unread = (max(0, unread_start), max(0, unread_start + num_unread))
        start += num_unread if limit.from_end else 0
    lowered = string.lower() if lower else string
    if len(lowered) == len(string):
        return SourceString(lowered, start, unread=unread)
    # Some characters become two when lower-cased, such as \u0130 (capital I with a dot).
    return SourceString(lowered, start, [i for i, c in enumerate(string) for _ in c.lower()], unread)
