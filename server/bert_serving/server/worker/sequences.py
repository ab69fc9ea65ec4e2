"""Turns word ids into the sequences that the model sees: truncation, windows, special tokens, spans.

The tokenizer adds no special tokens; this module adds them as its last step. Therefore truncation (on either side,
or of pairs by bert-as-service's rule) and windows work on lists of ids without special tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from bert_serving.protocol import EncodeOptions

from .excerpts import ReadingLimit
from .special_tokens import SpecialTokens
from .windows import windows

#: [start, stop): characters of a text, or positions in a list of ids.
Range: TypeAlias = "tuple[int, int]"

MAX_CHUNKED_TOKENS = 1 << 17  # limit for one text that is encoded in windows
NO_OFFSETS = (0, 0)  # for tokens without characters in the text: special tokens, and tokens of a prompt


class RequestError(ValueError):
    """A text cannot be encoded with the options of its request. Only that request fails."""


class TokenSequence(NamedTuple):
    """One sequence of token ids as the model sees it.

    kept: range of positions whose vectors are used. These are all positions, except where windows overlap: there,
    each token is kept in one window only.
    type_ids: None if all are 0. specials: positions of the special tokens. num_left_out: number of leading tokens
    that pooling leaves out: the special tokens before the text, and the prompt. num_new: for a window, how many of
    the text's tokens it keeps; a token of the prompt and a special token do not count.
    """

    ids: list[int]
    kept: Range
    type_ids: list[int] | None = None
    specials: tuple[int, ...] = ()
    num_left_out: int = 0
    num_new: int = 0


class TokenizedText(NamedTuple):
    """A text as one sequence, or as several windows that overlap.

    truncated: whether part of the text was cut off. offsets: the characters of the text that each of `ids` stands
    for; None if the request does not need them, or if the text is a list. lost: the characters that were cut off;
    empty if the offsets are not known. spans: positions in `ids` of the spans that the request asks for.
    """

    sequences: tuple[TokenSequence, ...]
    truncated: bool = False
    offsets: list[Range] | None = None
    lost: tuple[Range, ...] = ()
    spans: list[Range] | None = None

    @property
    def ids(self) -> list[int]:
        """The token ids of the text, special tokens included; each token once, even if windows overlap."""
        return [i for s in self.sequences for i in s.ids[slice(*s.kept)]]

    @property
    def num_tokens(self) -> int:
        """The number of tokens that the model computes; tokens in two windows count twice."""
        return sum(len(s.ids) for s in self.sequences)


class WordIds(NamedTuple):
    """The token ids of one string, or of one list of tokens, without special tokens.

    offsets: the characters of the text that each token stands for. unread: the characters of a long string that
    were not tokenized, because the rest of the string fills the sequence, or is as much as may be read. A list has
    no characters; if a part of it was not read, `unread` is NO_OFFSETS.
    """

    ids: list[int]
    offsets: list[Range] | None = None
    unread: Range | None = None

    def slice(self, start: int, stop: int) -> WordIds:
        """Return the ids from `start` to `stop`, with their offsets."""
        return WordIds(self.ids[start:stop], None if self.offsets is None else self.offsets[start:stop])


class Prompt(NamedTuple):
    """The prompt at the beginning of a text.

    num_tokens: number of its tokens, without special tokens. is_pooled: whether pooling includes these tokens.
    """

    num_tokens: int
    is_pooled: bool

    def num_left_out(self, num_before: int) -> int:
        """Return how many leading tokens pooling leaves out. num_before: special tokens before the prompt."""
        return 0 if self.is_pooled or self.num_tokens == 0 else num_before + self.num_tokens


NO_PROMPT = Prompt(0, is_pooled=True)


def build_sequences(
    word_ids: list[WordIds],
    special_tokens: SpecialTokens,
    options: EncodeOptions,
    *,
    max_seq_len: int,
    prompt: Prompt,
) -> TokenizedText:
    """Return a text as the sequences that the model sees.

    word_ids: one element for the string of the text, or two for the strings of a pair. prompt: the first tokens of
    the first string. Raises RequestError if the options do not allow a text of this length.
    """
    room = max(0, max_seq_len - special_tokens.num_specials)  # max_seq_len may be 3; RoBERTa adds 4 to a pair
    first = word_ids[0]
    if len(word_ids) == 1 and len(first.ids) <= room and first.unread is None and first.offsets is None:
        # The shortest way for most texts: beside a GPU, Python is what takes the time.
        return TokenizedText(
            (_sequence(word_ids, special_tokens, prompt.num_left_out(len(special_tokens.before))),)
        )
    length = sum(len(w.ids) for w in word_ids)
    is_unread = any(w.unread is not None for w in word_ids)
    truncated = length > room or is_unread
    is_chunked = truncated and options.long_text == "chunk" and len(word_ids) == 1
    if truncated and options.truncate == "error" and not is_chunked:
        more = " or more" if is_unread else ""
        raise RequestError(
            f"a text may have at most {room} tokens, not counting special tokens, got {length}{more}"
        )
    if is_chunked:
        return _in_windows(word_ids[0], special_tokens, room, prompt)
    lost: tuple[Range, ...] = ()
    if truncated:
        from_left, whole = options.truncate == "left", word_ids
        word_ids = _truncated(whole, room, from_left=from_left)
        lost = _lost(whole, word_ids, from_left=from_left)
        if not word_ids[-1].ids:  # as in bert-as-service, a pair without its second string ends after the first
            word_ids = word_ids[:1]
        if from_left:
            # Truncation on the left removes tokens of the prompt first. If a string has unread characters, its
            # prompt was not tokenized, so nothing of the prompt is left.
            num_lost = len(whole[0].ids) - len(word_ids[0].ids)
            num_left = 0 if whole[0].unread is not None else max(0, prompt.num_tokens - num_lost)
            prompt = prompt._replace(num_tokens=num_left)
    num_left_out = prompt.num_left_out(len(special_tokens.before))
    sequence = _sequence(word_ids, special_tokens, num_left_out)
    return TokenizedText((sequence,), truncated, _offsets(word_ids, special_tokens), lost)


def _truncated(word_ids: list[WordIds], room: int, *, from_left: bool) -> list[WordIds]:
    """Return a string or a pair, cut to `room` tokens.

    In a pair, tokens are removed from the longer string, and from the second one if both are equally long.
    """
    lengths = [len(w.ids) for w in word_ids]
    if len(word_ids) == 1:
        kept = [min(lengths[0], room)]
    else:
        second = min(lengths[1], max(room // 2, room - lengths[0]))
        kept = [min(lengths[0], room - second), second]
    return [
        w.slice(n - k, n) if from_left else w.slice(0, k) for w, n, k in zip(word_ids, lengths, kept, strict=True)
    ]


def _lost(whole: list[WordIds], kept: list[WordIds], *, from_left: bool) -> tuple[Range, ...]:
    """Return the characters that were cut off, one range for each string that lost some."""
    lost = []
    for before, after in zip(whole, kept, strict=True):
        if before.offsets is None:
            continue
        num_lost = len(before.ids) - len(after.ids)
        ranges = before.offsets[:num_lost] if from_left else before.offsets[len(after.ids) :]
        ranges = ranges if before.unread is None else [*ranges, before.unread]
        if ranges:
            lost.append((min(start for start, _ in ranges), max(stop for _, stop in ranges)))
    return tuple(lost)


def _sequence(word_ids: list[WordIds], special_tokens: SpecialTokens, num_left_out: int) -> TokenSequence:
    """Return the words of a string or a pair as one sequence, with special tokens."""
    before, between, after, types = special_tokens
    first = word_ids[0].ids
    second: list[int] = []
    type_ids = None
    if len(word_ids) == 1:
        between = []
    else:
        second = word_ids[1].ids
        word_types = [types.first] * len(first), [types.second] * len(second)
        type_ids = [*types.before, *word_types[0], *types.between, *word_types[1], *types.after]
    ids = [*before, *first, *between, *second, *after]
    middle = len(before) + len(first)
    specials = (
        *range(len(before)),
        *range(middle, middle + len(between)),
        *range(len(ids) - len(after), len(ids)),
    )
    return TokenSequence(ids, (0, len(ids)), type_ids, specials, num_left_out)


def _offsets(word_ids: list[WordIds], special_tokens: SpecialTokens) -> list[Range] | None:
    """Return the characters that each token of a sequence stands for, or None if they are not known."""
    known = [w.offsets for w in word_ids if w.offsets is not None]
    if len(known) < len(word_ids):
        return None
    before, between, after = (
        [NO_OFFSETS] * len(ids) for ids in (special_tokens.before, special_tokens.between, special_tokens.after)
    )
    return [*before, *known[0], *(between + known[1] if len(known) > 1 else []), *after]


def _in_windows(word_ids: WordIds, special_tokens: SpecialTokens, room: int, prompt: Prompt) -> TokenizedText:
    """Return a long text as overlapping windows of `room` tokens, with special tokens added around each.

    Each window begins with the prompt. The prompt and the special tokens before the text are kept only in the
    first window, the special tokens after the text only in the last.
    """
    if word_ids.unread is not None or len(word_ids.ids) > MAX_CHUNKED_TOKENS:
        max_chars = ReadingLimit(MAX_CHUNKED_TOKENS).max_chars
        raise RequestError(
            f"long_text chunk reads at most {MAX_CHUNKED_TOKENS} tokens and {max_chars} characters, "
            "this text has more"
        )
    num_prompt = prompt.num_tokens
    if num_prompt > room // 2:  # otherwise, a text of many windows would be mostly copies of the prompt
        raise RequestError(
            f"with long_text chunk, a prompt may have at most {room // 2} tokens, half of a window, "
            f"got {num_prompt}"
        )
    first_ids, text_ids = word_ids.ids[:num_prompt], word_ids.ids[num_prompt:]
    num_before = len(special_tokens.before) + num_prompt
    num_left_out = prompt.num_left_out(len(special_tokens.before))
    sequences = []
    plan = windows(len(text_ids), room - num_prompt)
    for window in plan:
        ids = WordIds(first_ids + text_ids[window.start : window.stop])
        sequence = _sequence([ids], special_tokens, num_left_out)
        start = 0 if window is plan[0] else num_before + window.kept_start - window.start
        stop = len(sequence.ids) if window is plan[-1] else num_before + window.kept_stop - window.start
        num_new = window.kept_stop - window.kept_start
        sequences.append(sequence._replace(kept=(start, stop), num_new=num_new))
    return TokenizedText(tuple(sequences), offsets=_offsets([word_ids], special_tokens))


def with_spans(text: TokenizedText, spans: Sequence[Sequence[int]], num_chars: int) -> TokenizedText:
    """Return the text with the positions of the tokens that overlap each span.

    text: must have offsets. spans: [start, end) in characters. num_chars: length of the text. Raises RequestError
    for a span that contains no token, or that lies outside of what the model sees of the text.
    """
    assert text.offsets is not None, "offsets are computed whenever spans are requested"
    positions = [i for i, (start, stop) in enumerate(text.offsets) if stop > start]  # without NO_OFFSETS
    # Both lists are sorted, so a span's first and last token can be found by bisection.
    starts, stops = [text.offsets[i][0] for i in positions], [text.offsets[i][1] for i in positions]
    found = []
    for start, end in spans:
        if end > num_chars:
            raise RequestError(f"span [{start}, {end}] ends after the text, which has {num_chars} characters")
        if any(start < lost_stop and end > lost_start for lost_start, lost_stop in text.lost):
            raise RequestError(
                f"span [{start}, {end}] lies in the part of the text that was cut off; see the option long_text"
            )
        first, after_last = bisect_right(stops, start), bisect_left(starts, end)
        if first >= after_last:
            raise RequestError(f"span [{start}, {end}] contains no token")
        found.append((positions[first], positions[after_last - 1] + 1))
    return text._replace(spans=found)
