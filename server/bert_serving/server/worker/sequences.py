"""WordIds' ids to the sequences that the model sees: cutting, windows, special tokens, spans.

Special tokens are put around the words here and not by the tokenizer, so that cutting on either side, pairs
cut by bert-as-service's rule, and windows all work on plain lists.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from bert_serving.protocol import EncodeOptions

from ..model.errors import ModelError
from .windows import windows

#: [start, stop), in characters of a text or in tokens of its ids.
Range: TypeAlias = "tuple[int, int]"

MAX_CHUNKED_TOKENS = 1 << 17
NOWHERE = (0, 0)


class RequestError(ValueError):
    """A text cannot be encoded in the way that its request asks for; it costs that request alone."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence as the model sees it.

    owned: those of the tokens that stand for the text; windows overlap in the others. type_ids: None where
    all are 0. specials: positions of the special tokens. num_prompt: leading tokens that pooling leaves out.
    """

    ids: list[int]
    owned: Range
    type_ids: list[int] | None = None
    specials: tuple[int, ...] = ()
    num_prompt: int = 0


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as one sequence, or as several that overlap.

    truncated: some of it did not fit. offsets: where each of `ids` lies in the text, (0, 0) for special
    tokens; None where nobody asked, or the text came as tokens. lost: the characters that did not fit, known
    where offsets are. spans: ranges of `ids`, if asked for.
    """

    sequences: tuple[TokenSequence, ...]
    truncated: bool = False
    offsets: list[Range] | None = None
    lost: tuple[Range, ...] = ()
    spans: list[Range] | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens of the text, special ones included, each once."""
        return [i for s in self.sequences for i in s.ids[slice(*s.owned)]]

    @property
    def num_tokens(self) -> int:
        """How many tokens the model computes."""
        return sum(len(s.ids) for s in self.sequences)


@dataclass(frozen=True, slots=True)
class WordIds:
    """The ids of a string's words. unread: the characters that follow, or precede, and were not read."""

    ids: list[int]
    offsets: list[Range] | None = None
    unread: Range | None = None

    def piece(self, start: int, stop: int) -> WordIds:
        return WordIds(self.ids[start:stop], None if self.offsets is None else self.offsets[start:stop])


class SpecialTokens(NamedTuple):
    """The special tokens around and between words: their ids, and the type ids of all."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    def without_types(self) -> SpecialTokens:
        """Return the template of a model that does not tell the parts of a pair apart by type."""
        return self._replace(types=([0] * len(self.before), 0, [0] * len(self.between), 0, [0] * len(self.after)))

    @property
    def num_specials(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def compose(
    words: list[WordIds],
    template: SpecialTokens,
    options: EncodeOptions,
    *,
    max_seq_len: int,
    num_prompt: int,
) -> TokenizedText:
    """Return one or two parts of a text as the model will see them.

    num_prompt: tokens in front, special ones included, that pooling leaves out. Raises RequestError for a text
    that is too long where that is refused.
    """
    room = max(0, max_seq_len - template.num_specials)  # RoBERTa's pairs have four
    length = sum(len(w.ids) for w in words)
    truncated = length > room
    is_chunked = truncated and options.long_text == "chunk" and len(words) == 1
    if truncated and options.truncate == "error" and not is_chunked:
        more = " or more" if any(w.unread for w in words) else ""
        raise RequestError(f"a text may have {room} tokens and special ones, got {length}{more}")
    if is_chunked:
        return _chunked(words[0], template, room, num_prompt)
    lost: tuple[Range, ...] = ()
    if truncated:
        from_left, whole = options.truncate == "left", words
        words = _cut(whole, room, from_left=from_left)
        lost = _lost(whole, words, from_left=from_left)
        if from_left:  # some of the prompt may be left, unless its text was too long to be read up to it
            num_prompt -= len(whole[0].ids) - len(words[0].ids)
            num_prompt = 0 if whole[0].unread or num_prompt <= len(template.before) else num_prompt
    sequence = _sequence(words, template, num_prompt=num_prompt)
    return TokenizedText((sequence,), truncated, _offsets(words, template), lost)


def _cut(words: list[WordIds], room: int, *, from_left: bool) -> list[WordIds]:
    """Return what fits of one or two parts. Of a pair the longer loses; of equal ones the second."""
    lengths = [len(w.ids) for w in words]
    if len(words) == 1:
        kept = [room]
    else:
        second = min(lengths[1], max(room // 2, room - lengths[0]))
        kept = [min(lengths[0], room - second), second]
    return [
        w.piece(n - k, n) if from_left else w.piece(0, k) for w, n, k in zip(words, lengths, kept, strict=True)
    ]


def _lost(whole: list[WordIds], kept: list[WordIds], *, from_left: bool) -> tuple[Range, ...]:
    """Return the characters that were cut off, a range for each part that lost some."""
    found = []
    for part, rest in zip(whole, kept, strict=True):
        if part.offsets is None:
            continue
        num_lost = len(part.ids) - len(rest.ids)
        gone = part.offsets[:num_lost] if from_left else part.offsets[len(rest.ids) :]
        gone = gone if part.unread is None else [*gone, part.unread]
        if gone:
            found.append((min(start for start, _ in gone), max(end for _, end in gone)))
    return tuple(found)


def _sequence(words: list[WordIds], template: SpecialTokens, *, num_prompt: int = 0) -> TokenSequence:
    """Return one sequence with its special tokens."""
    bodies = [w.ids for w in words]
    pieces = [
        template.before,
        bodies[0],
        *([template.between, bodies[1]] if len(bodies) > 1 else []),
        template.after,
    ]
    ids = [i for piece in pieces for i in piece]
    starts = [sum(len(piece) for piece in pieces[:k]) for k in range(len(pieces))]
    specials = tuple(i for k in range(0, len(pieces), 2) for i in range(starts[k], starts[k] + len(pieces[k])))
    type_ids = None
    if len(bodies) > 1:
        before, first, between, second, after = template.types
        type_ids = [*before, *[first] * len(bodies[0]), *between, *[second] * len(bodies[1]), *after]
    return TokenSequence(ids, (0, len(ids)), type_ids, specials, num_prompt)


def _offsets(words: list[WordIds], template: SpecialTokens) -> list[Range] | None:
    """Return where the tokens of a sequence lie in the text."""
    known = [w.offsets for w in words if w.offsets is not None]
    if len(known) < len(words):
        return None
    second = [*[NOWHERE] * len(template.between), *known[1]] if len(known) > 1 else []
    return [*[NOWHERE] * len(template.before), *known[0], *second, *[NOWHERE] * len(template.after)]


def _chunked(words: WordIds, template: SpecialTokens, room: int, num_prompt: int) -> TokenizedText:
    """Return a text as windows. The first owns the special tokens before it, the last those behind it."""
    if words.unread or len(words.ids) > MAX_CHUNKED_TOKENS:
        raise RequestError(f"long_text chunk reads at most {MAX_CHUNKED_TOKENS} tokens, this text has more")
    sequences = []
    num_before = len(template.before)
    plan = windows(len(words.ids), room)
    for window in plan:
        sequence = _sequence([words.piece(window.start, window.stop)], template)
        start = 0 if window is plan[0] else num_before + window.owned_start - window.start
        stop = len(sequence.ids) if window is plan[-1] else num_before + window.owned_stop - window.start
        prompt = num_prompt if window is plan[0] else 0
        sequences.append(TokenSequence(sequence.ids, (start, stop), None, sequence.specials, prompt))
    return TokenizedText(tuple(sequences), offsets=_offsets([words], template))


def with_spans(text: TokenizedText, spans: Sequence[Sequence[int]], num_chars: int) -> TokenizedText:
    """Return the text with the tokens that each span touches. text: with offsets.

    Raises RequestError where a span holds none.
    """
    assert text.offsets is not None, "asked for with the spans"
    at = [i for i, (first, stop) in enumerate(text.offsets) if stop > first]
    starts, stops = [text.offsets[i][0] for i in at], [text.offsets[i][1] for i in at]  # both never fall
    found = []
    for start, end in spans:
        if end > num_chars:
            raise RequestError(f"span [{start}, {end}] ends behind the text, which has {num_chars} characters")
        if any(start < stop and end > first for first, stop in text.lost):
            raise RequestError(f"span [{start}, {end}] lies in the part of the text that was cut; see long_text")
        first, behind = bisect_right(stops, start), bisect_left(starts, end)
        if first >= behind:
            raise RequestError(f"span [{start}, {end}] holds no token")
        found.append((at[first], at[behind - 1] + 1))
    return replace(text, spans=found)


def template_of(encoding: Any) -> SpecialTokens:
    """Return the special tokens that the tokenizer put around "a", or around "a" and "a"."""
    ids, types = encoding.ids, encoding.type_ids
    words = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    if not words:
        raise ModelError("the tokenizer makes no token of the letter a: it is not the one of a text model")
    first, last = words[0], words[-1]
    between = sorted(set(range(first, last)) - set(words))
    return SpecialTokens(
        ids[:first],
        [ids[i] for i in between],
        ids[last + 1 :],
        (types[:first], types[first], [types[i] for i in between], types[last], types[last + 1 :]),
    )
