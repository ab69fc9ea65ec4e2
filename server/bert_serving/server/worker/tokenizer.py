"""Texts to token ids, through the model's own fast tokenizer, without padding.

    split      a text to one string, two of a pair, or a list of tokens
    read       strings to the ids of their words, no more of a very long one than its sequence needs
    compose    words to sequences: cutting, windows, special tokens

Special tokens are put around the words here and not by the tokenizer, so that cutting on either side, pairs
cut by bert-as-service's rule, and windows all work on plain lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from bert_serving.protocol import EncodeOptions, Text
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from ..model_files import ModelError, one_line
from .windows import windows

#: [start, stop), in characters of a text or in tokens of its ids.
Range: TypeAlias = "tuple[int, int]"

_CHARS_PER_TOKEN = 16  # of the text's beginning that is looked at first; texts have about 4
_MARGIN_TOKENS = 16  # that must be left over for the cut to be out of sight of the tokens that are kept
_LONGEST_WORD = 1 << 20
_WHITE_SPACE = re.compile(r"[ \t\r\n]")
_MAX_CHUNKED_TOKENS = 1 << 17
_SEPARATOR = "|||"
_NOWHERE = (0, 0)


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


class _String(NamedTuple):
    """A string to tokenize, and where in its text it begins.

    origin: for each character the one of the text's string that it was, where their number differs.
    """

    string: str
    start: int
    origin: list[int] | None = None

    def place(self, start: int, end: int) -> Range:
        """Return where these characters lie in the text; the prompt in front of it is nowhere."""
        if end <= start:
            return _NOWHERE
        if self.origin is not None:
            start, end = self.origin[start], self.origin[end - 1] + 1
        start, end = max(0, start + self.start), end + self.start
        return (start, end) if end > start else _NOWHERE


@dataclass(frozen=True, slots=True)
class _Words:
    """The ids of a string's words. unread: the characters that follow, or precede, and were not read."""

    ids: list[int]
    offsets: list[Range] | None = None
    unread: Range | None = None

    def piece(self, start: int, stop: int) -> _Words:
        return _Words(self.ids[start:stop], None if self.offsets is None else self.offsets[start:stop])


class _Template(NamedTuple):
    """The special tokens around and between words: their ids, and the type ids of all."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    @property
    def num_specials(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer:
    """A tokenizer whose sequences hold at most `max_seq_len` tokens.

    do_lower_case: lower texts before the tokenizer sees them. cased: take out the tokenizer's own lower-casing.
    no_special_token: texts that arrive as tokens get no special tokens around them.
    Safe for one thread at a time; the work itself runs outside of Python's lock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_seq_len: int,
        do_lower_case: bool = False,
        cased: bool = False,
        no_special_token: bool = False,
        trust_remote_code: bool = False,
        model_type: str | None = None,
    ) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder,
                tokenizer_type=model_type,
                local_files_only=True,
                use_fast=True,
                trust_remote_code=trust_remote_code,
            )
        except Exception as exc:  # whatever a damaged file makes of the libraries that read it
            raise ModelError(f"cannot load the tokenizer in {folder}: {one_line(exc)}") from exc
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"the tokenizer in {folder} has no fast (Rust) form: {type(tokenizer).__name__}")
        self._rust = _cased(tokenizer.backend_tokenizer) if cased else tokenizer.backend_tokenizer
        self._rust.no_padding()
        self._rust.no_truncation()
        # Google's tokenizer knows no special tokens in a text: what looks like one is words and brackets.
        self._rust.encode_special_tokens = model_type is not None
        self._single = _template(self._rust.encode("a"))
        self._pair = _template(self._rust.encode("a", "a"))
        self._bare = _Template([], [], [], ([], 0, [], 0, []))
        self._max_seq_len = max_seq_len
        self._do_lower_case = do_lower_case and not cased
        self._no_special_token = no_special_token
        self._unknown_id: int | None = tokenizer.unk_token_id
        self.pad_id: int = tokenizer.pad_token_id or 0

    def __call__(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        *,
        prompt: str = "",
        pool_prompt: bool = True,
        spans: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[TokenizedText | RequestError]:
        """Return the tokens of each text, in order, or why it has none.

        A list of tokens is looked up word by word, as it is. prompt: goes in front of every string.
        pool_prompt: whether pooling sees the prompt. spans: [start, end] in characters, some for each text.
        """
        split = [self._split(text, prompt, pairs=options.pairs) for text in texts]
        strings = [part for parts in split for part in parts if isinstance(part, _String)]
        with_offsets = options.show_offsets or spans is not None
        read = iter(self._read(strings, options, with_offsets=with_offsets) if strings else ())
        num_prompt = 0 if pool_prompt or not prompt else len(self._single.before) + len(self._ids_of(prompt))
        found: list[TokenizedText | RequestError] = []
        for i, parts in enumerate(split):
            words = [next(read) if isinstance(part, _String) else part for part in parts]
            spans_of_text = None if spans is None else spans[i]
            leading = 0 if isinstance(texts[i], list) else num_prompt
            found.append(self._compose_or_refuse(texts[i], words, options, leading, spans_of_text))
        return found

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of the ids, as the vocabulary spells them."""
        return [self._rust.id_to_token(i) or "" for i in ids]

    # -- split -----------------------------------------------------------------------------------------

    def _split(self, text: Text, prompt: str, *, pairs: bool) -> list[_String] | list[list[str]]:
        """Return a text's one or two parts. Pairs as in bert-as-service's extract_features.py."""
        if isinstance(text, list):
            if pairs and _SEPARATOR in text:
                at = text.index(_SEPARATOR)
                return [text[:at], text[at + 1 :]]
            return [text]
        if pairs and f" {_SEPARATOR} " in text and "\n" not in (stripped := text.strip()):
            first, separator, second = stripped.rpartition(f" {_SEPARATOR} ")
            if separator:
                start = len(text) - len(text.lstrip())
                second_start = start + len(first) + len(separator)
                return [self._string(prompt + first, start - len(prompt)), self._string(second, second_start)]
        return [self._string(prompt + text, -len(prompt))]

    def _string(self, string: str, start: int) -> _String:
        lowered = string.lower() if self._do_lower_case else string
        if len(lowered) == len(string):
            return _String(lowered, start)
        return _String(lowered, start, [i for i, c in enumerate(string) for _ in c.lower()])  # \u0130 becomes two

    # -- read ------------------------------------------------------------------------------------------

    def _read(self, strings: list[_String], options: EncodeOptions, *, with_offsets: bool) -> list[_Words]:
        """Return the words of the strings, reading no more of a very long one than its sequence needs."""
        chunk, left = options.long_text == "chunk", options.truncate == "left"
        num_words = _MAX_CHUNKED_TOKENS if chunk else self._max_seq_len
        encode = self._rust.encode_batch if with_offsets else self._rust.encode_batch_fast
        cut = _ending if left and not chunk else _beginning
        size = num_words * _CHARS_PER_TOKEN
        pieces = [cut(s.string, size) for s in strings]
        encodings = encode(pieces, add_special_tokens=False)
        found = []
        for string, piece, encoding in zip(strings, pieces, encodings, strict=True):
            reach, seen, words = size, piece, encoding
            while len(seen) < len(string.string) and len(words.ids) < num_words + _MARGIN_TOKENS:
                reach *= 4
                seen = cut(string.string, reach)
                (words,) = encode([seen], add_special_tokens=False)
            unread = len(string.string) - len(seen)
            skipped, behind = (unread, 0) if cut is _ending else (0, len(seen))
            offsets = [string.place(a + skipped, b + skipped) for a, b in words.offsets] if with_offsets else None
            where = string.place(behind, behind + unread) if unread else None
            found.append(_Words(words.ids, offsets, where))
        return found

    def _look_up(self, tokens: list[str]) -> _Words:
        return _Words([self._id_of(token) for token in tokens])

    def _id_of(self, token: str) -> int:
        found = self._rust.token_to_id(token)
        found = self._unknown_id if found is None else found
        if found is None:
            raise RequestError(f"token {token!r} is not in the vocabulary, which has no unknown token")
        return int(found)

    def _ids_of(self, string: str) -> list[int]:
        ids: list[int] = self._rust.encode(self._string(string, 0).string, add_special_tokens=False).ids
        return ids

    # -- compose ---------------------------------------------------------------------------------------

    def _compose_or_refuse(
        self,
        text: Text,
        parts: Sequence[_Words | list[str]],
        options: EncodeOptions,
        num_prompt: int,
        spans: Sequence[Sequence[int]] | None,
    ) -> TokenizedText | RequestError:
        try:
            words = [part if isinstance(part, _Words) else self._look_up(part) for part in parts]
            tokenized = self._compose(words, options, num_prompt, is_tokenized=isinstance(text, list))
            return tokenized if spans is None else _with_spans(tokenized, spans, len(text))
        except RequestError as exc:
            return exc

    def _compose(
        self, words: list[_Words], options: EncodeOptions, num_prompt: int, *, is_tokenized: bool
    ) -> TokenizedText:
        if len(words) == 2 and not words[1].ids:
            words = words[:1]  # as in bert-as-service: nothing behind the separator makes no pair
        if len(words) == 2:
            template = self._pair
        else:
            template = self._bare if is_tokenized and self._no_special_token else self._single
        if template is self._bare and not words[0].ids:
            raise RequestError("this text has no token, and no_special_token adds none")
        room = max(0, self._max_seq_len - template.num_specials)  # RoBERTa's pairs have four
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


def _cut(words: list[_Words], room: int, *, from_left: bool) -> list[_Words]:
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


def _lost(whole: list[_Words], kept: list[_Words], *, from_left: bool) -> tuple[Range, ...]:
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


def _sequence(words: list[_Words], template: _Template, *, num_prompt: int = 0) -> TokenSequence:
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


def _offsets(words: list[_Words], template: _Template) -> list[Range] | None:
    """Return where the tokens of a sequence lie in the text."""
    known = [w.offsets for w in words if w.offsets is not None]
    if len(known) < len(words):
        return None
    second = [*[_NOWHERE] * len(template.between), *known[1]] if len(known) > 1 else []
    return [*[_NOWHERE] * len(template.before), *known[0], *second, *[_NOWHERE] * len(template.after)]


def _chunked(words: _Words, template: _Template, room: int, num_prompt: int) -> TokenizedText:
    """Return a text as windows. The first owns the special tokens before it, the last those behind it."""
    if words.unread or len(words.ids) > _MAX_CHUNKED_TOKENS:
        raise RequestError(f"long_text chunk reads at most {_MAX_CHUNKED_TOKENS} tokens, this text has more")
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


def _with_spans(text: TokenizedText, spans: Sequence[Sequence[int]], num_chars: int) -> TokenizedText:
    """Return the text with the tokens that each span touches. Raises RequestError where there are none."""
    if text.offsets is None:
        raise RequestError("spans count characters, but this text came as tokens")
    at = [(i, offset) for i, offset in enumerate(text.offsets) if offset[1] > offset[0]]
    found = []
    for start, end in spans:
        if end > num_chars:
            raise RequestError(f"span [{start}, {end}] ends behind the text, which has {num_chars} characters")
        touched = [i for i, (first, last) in at if first < end and last > start]
        if any(start < stop and end > first for first, stop in text.lost):
            raise RequestError(f"span [{start}, {end}] lies in the part of the text that was cut; see long_text")
        if not touched:
            raise RequestError(f"span [{start}, {end}] holds no token")
        found.append((touched[0], touched[-1] + 1))
    return TokenizedText(text.sequences, text.truncated, text.offsets, text.lost, found)


def _template(encoding: Any) -> _Template:
    """Return the special tokens that the tokenizer put around "a", or around "a" and "a"."""
    ids, types = encoding.ids, encoding.type_ids
    words = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    if not words:
        raise ModelError("the tokenizer makes no token of the letter a: it is not the one of a text model")
    first, last = words[0], words[-1]
    between = sorted(set(range(first, last)) - set(words))
    return _Template(
        ids[:first],
        [ids[i] for i in between],
        ids[last + 1 :],
        (types[:first], types[first], [types[i] for i in between], types[last], types[last + 1 :]),
    )


def _cased(rust: Any) -> Any:
    """Return the tokenizer without its lower-casing and accent-stripping."""

    def without(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
        kind = (normalizer or {}).get("type")
        if normalizer is None or kind in ("Lowercase", "StripAccents"):
            return None
        if kind == "BertNormalizer":
            return normalizer | {"lowercase": False, "strip_accents": False}
        if kind == "Sequence":
            kept = [without(inner) for inner in normalizer["normalizers"]]
            return normalizer | {"normalizers": [inner for inner in kept if inner is not None]}
        return normalizer

    state = json.loads(rust.to_str())
    state["normalizer"] = without(state["normalizer"])
    return RustTokenizer.from_str(json.dumps(state))


def _beginning(text: str, size: int) -> str:
    """Return the text up to the first white space behind `size` characters.

    Tokenizers treat words one by one, so that nothing behind a white space changes a token well before it.
    Only white space counts that every tokenizer sees as such: BERT's removes other control characters.
    Where there is none for a million characters, the text is cut there.
    """
    if len(text) <= size:
        return text
    end = size + _LONGEST_WORD
    space = _WHITE_SPACE.search(text, size, end)
    return text[:end] if space is None else text[: space.start()]


def _ending(text: str, size: int) -> str:
    """Return the text from the last white space before its last `size` characters on; see `_beginning`."""
    if len(text) <= size:
        return text
    start = max(0, len(text) - size - _LONGEST_WORD)
    space = max(text.rfind(c, start, len(text) - size) for c in " \t\r\n")
    return text[start:] if space < 0 else text[space:]
