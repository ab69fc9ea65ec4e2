"""Turns strings into word ids. Of a long string, it tokenizes only as many characters as the sequence needs."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from .excerpts import ReadingLimit
from .sequences import WordIds
from .sources import SourceString

_MARGIN_TOKENS = 16  # tokens to read in addition, because the last tokens before a cut may be wrong


def tokenize_strings(
    rust: RustTokenizer, strings: Sequence[SourceString], limit: ReadingLimit, *, with_offsets: bool
) -> list[WordIds]:
    """Return the word ids of each string.

    For a long string, these are at least as many ids as the limit asks for, or the ids of limit.max_chars
    characters if these have fewer. with_offsets: also find the characters that each token stands for.
    """
    encode = rust.encode_batch if with_offsets else rust.encode_batch_fast
    first_size = limit.first_chars
    excerpts = [limit.excerpt(s.string, first_size) for s in strings]
    encodings = encode(excerpts, add_special_tokens=False)
    found = []
    for source, first_excerpt, first_encoding in zip(strings, excerpts, encodings, strict=True):
        size, excerpt, encoding = first_size, first_excerpt, first_encoding
        while len(excerpt) < len(source.string) and len(encoding.ids) < limit.num_tokens + _MARGIN_TOKENS:
            size *= 4
            excerpt = limit.excerpt(source.string, size)
            (encoding,) = encode([excerpt], add_special_tokens=False)
        found.append(_word_ids(source, excerpt, encoding, from_end=limit.from_end, with_offsets=with_offsets))
    return found


def _word_ids(
    source: SourceString, excerpt: str, encoding: Encoding, *, from_end: bool, with_offsets: bool
) -> WordIds:
    num_unread = len(source.string) - len(excerpt)
    if not (with_offsets or num_unread or source.unread):
        return WordIds(encoding.ids)
    excerpt_start, unread_start = (num_unread, 0) if from_end else (0, len(excerpt))
    offsets = None
    if with_offsets:
        offsets = [source.range_in_text(a + excerpt_start, b + excerpt_start) for a, b in encoding.offsets]
    unread = [] if source.unread is None else [source.unread]
    if num_unread:
        unread.append(source.range_in_text(unread_start, unread_start + num_unread))
    whole = (min(start for start, _ in unread), max(stop for _, stop in unread)) if unread else None
    return WordIds(encoding.ids, offsets, whole)
