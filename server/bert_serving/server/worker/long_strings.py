"""Turns strings into word ids. Of a long string, it tokenizes only as many characters as the sequence needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer as RustTokenizer

from .sequences import WordIds
from .sources import SourceString

_CHARS_PER_TOKEN = 16  # first guess, higher than usual: most texts have about 4 characters per token
_MARGIN_TOKENS = 16  # tokens to read in addition, because the last tokens before a cut may be wrong
_LONGEST_WORD = 1 << 20
_WHITE_SPACE = re.compile(r"[ \t\r\n]")


def tokenize_strings(
    rust: RustTokenizer, strings: Sequence[SourceString], *, num_tokens: int, from_end: bool, with_offsets: bool
) -> list[WordIds]:
    """Return the word ids of each string.

    For a long string, these are at least num_tokens ids from its beginning, or from its end if from_end.
    with_offsets: also find the characters that each token stands for.
    """
    encode = rust.encode_batch if with_offsets else rust.encode_batch_fast
    cut = _ending if from_end else _beginning
    first_size = num_tokens * _CHARS_PER_TOKEN
    excerpts = [cut(s.string, first_size) for s in strings]
    encodings = encode(excerpts, add_special_tokens=False)
    found = []
    for source, first_excerpt, first_encoding in zip(strings, excerpts, encodings, strict=True):
        size, excerpt, encoding = first_size, first_excerpt, first_encoding
        while len(excerpt) < len(source.string) and len(encoding.ids) < num_tokens + _MARGIN_TOKENS:
            size *= 4
            excerpt = cut(source.string, size)
            (encoding,) = encode([excerpt], add_special_tokens=False)
        num_unread = len(source.string) - len(excerpt)
        excerpt_start, unread_start = (num_unread, 0) if from_end else (0, len(excerpt))
        offsets = None
        if with_offsets:
            offsets = [source.range_in_text(a + excerpt_start, b + excerpt_start) for a, b in encoding.offsets]
        unread = source.range_in_text(unread_start, unread_start + num_unread) if num_unread else None
        found.append(WordIds(encoding.ids, offsets, unread))
    return found


def _beginning(text: str, size: int) -> str:
    """Return the text up to the first white space after `size` characters.

    Tokenizers treat words one by one, so text after a white space does not change the tokens well before it.
    The text is cut only at characters that every tokenizer treats as white space. (BERT's tokenizer removes other
    control characters instead of splitting there.)
    If the next million characters have no white space, the text is cut after these characters.
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
