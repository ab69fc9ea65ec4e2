"""Cuts long strings at white space. A tokenizer never sees more of a text than the sequence can need."""

from __future__ import annotations

import re
from typing import NamedTuple

_CHARS_PER_TOKEN = 16  # first guess, higher than usual: most texts have about 4 characters per token
_MAX_FIRST_CHARS = 1 << 17  # for sequences of many tokens, the first guess is lower: 4 characters per token
_FEW_CHARS_PER_TOKEN = 4
_MAX_CHARS = 1 << 20
_LONGEST_WORD = 1 << 16
_WHITE_SPACE = re.compile(r"[ \t\r\n]")


class ReadingLimit(NamedTuple):
    """How much of a text is read: its first num_tokens tokens, or its last ones if from_end."""

    num_tokens: int
    from_end: bool = False

    @property
    def first_chars(self) -> int:
        """The number of characters to try first."""
        return min(
            self.num_tokens * _CHARS_PER_TOKEN, max(self.num_tokens * _FEW_CHARS_PER_TOKEN, _MAX_FIRST_CHARS)
        )

    @property
    def max_chars(self) -> int:
        """The largest number of characters to read, even if they have fewer tokens.

        Without this limit, a text of white space only, which has no tokens, would be read completely.
        """
        return max(self.num_tokens * _CHARS_PER_TOKEN, _MAX_CHARS)

    def excerpt(self, text: str, size: int) -> str:
        """Return about `size` characters of the text, up to the next white space."""
        return _ending(text, size) if self.from_end else _beginning(text, size)


def _beginning(text: str, size: int) -> str:
    """Return the text up to the first white space after `size` characters.

    Tokenizers treat words one by one, so text after a white space does not change the tokens well before it.
    The text is cut only at characters that every tokenizer treats as white space. (BERT's tokenizer removes other
    control characters instead of splitting there.)
    If a long word follows, the text is cut within this word, 65,536 characters later.
    """
    if len(text) <= size:
        return text
    stop = size + _LONGEST_WORD
    space = _WHITE_SPACE.search(text, size, stop)
    return text[:stop] if space is None else text[: space.start()]


def _ending(text: str, size: int) -> str:
    """Return the text from the last white space before its last `size` characters; see `_beginning`."""
    if len(text) <= size:
        return text
    start = max(0, len(text) - size - _LONGEST_WORD)
    space = max(text.rfind(c, start, len(text) - size) for c in " \t\r\n")
    return text[start:] if space < 0 else text[space:]
