"""Texts to token ids, through the model's own fast tokenizer, without padding.

split      a text to one string, two of a pair, or a list of tokens or ids
read       strings to the ids of their words, no more of a very long one than its sequence needs
compose    words to sequences, see there
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert_serving.protocol import EncodeOptions, Text
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers
from transformers import AutoTokenizer

from ..model.errors import ModelError, one_line
from .sequences import (
    MAX_CHUNKED_TOKENS,
    NOWHERE,
    Range,
    RequestError,
    SpecialTokens,
    TokenizedText,
    WordIds,
    compose,
    template_of,
    with_spans,
)

_CHARS_PER_TOKEN = 16  # of the text's beginning that is looked at first; texts have about 4
_MARGIN_TOKENS = 16  # that must be left over for the cut to be out of sight of the tokens that are kept
_LONGEST_WORD = 1 << 20
_WHITE_SPACE = re.compile(r"[ \t\r\n]")
_SEPARATOR = "|||"


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
            return NOWHERE
        if self.origin is not None:
            start, end = self.origin[start], self.origin[end - 1] + 1
        start, end = max(0, start + self.start), end + self.start
        return (start, end) if end > start else NOWHERE


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
        self._single = template_of(self._rust.encode("a"))
        self._pair = template_of(self._rust.encode("a", "a"))
        if "token_type_ids" not in tokenizer.model_input_names:  # then Transformers gives them to no model
            self._pair = self._pair.without_types()
        self._bare = SpecialTokens([], [], [], ([], 0, [], 0, []))
        self._max_seq_len = max_seq_len
        self._do_lower_case = do_lower_case and not cased
        self._no_special_token = no_special_token
        self._unknown_id: int | None = tokenizer.unk_token_id
        self._num_ids: int = max(self._rust.get_vocab(with_added_tokens=True).values()) + 1  # there may be holes
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

        A list of tokens is looked up word by word, as it is; ids are taken as they are. prompt: goes in front of
        every string. pool_prompt: whether pooling sees the prompt. spans: [start, end] in characters, some for
        each text.
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

    @property
    def num_ids(self) -> int:
        """The number behind the largest token id, of added tokens too."""
        return self._num_ids

    def save(self, path: Path) -> None:
        """Write the tokenizer to a file that the tokenizers library reads."""
        rust = RustTokenizer.from_str(self._rust.to_str())
        if self._do_lower_case:
            first = [normalizers.Lowercase()]
            rust.normalizer = normalizers.Sequence(first if rust.normalizer is None else [*first, rust.normalizer])
        rust.save(str(path))

    @property
    def splits_specials(self) -> bool:
        """Whether what looks like a special token in a text is words. The file of `save` cannot say it."""
        return bool(self._rust.encode_special_tokens)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of the ids, as the vocabulary spells them."""
        return [self._rust.id_to_token(i) or "" for i in ids]

    # -- split -----------------------------------------------------------------------------------------

    def _split(self, text: Text, prompt: str, *, pairs: bool) -> Sequence[_String | list[str] | list[int]]:
        """Return a text's one or two parts. `|||` as in bert-as-service's extract_features.py."""
        if isinstance(text, dict):
            return [self._string(prompt + text["text"], -len(prompt)), self._string(text["text_pair"], 0)]
        if isinstance(text, list):
            if pairs and _SEPARATOR in text:
                at = text.index(_SEPARATOR)  # type: ignore[arg-type]
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

    def _read(self, strings: list[_String], options: EncodeOptions, *, with_offsets: bool) -> list[WordIds]:
        """Return the words of the strings, reading no more of a very long one than its sequence needs."""
        chunk, left = options.long_text == "chunk", options.truncate == "left"
        num_words = MAX_CHUNKED_TOKENS if chunk else self._max_seq_len
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
            found.append(WordIds(words.ids, offsets, where))
        return found

    def _look_up(self, tokens: list[str] | list[int]) -> WordIds:
        if ids := [token for token in tokens if isinstance(token, int)]:
            return WordIds(self._checked_ids(ids))
        return WordIds([self._id_of(str(token)) for token in tokens])

    def _checked_ids(self, ids: list[int]) -> list[int]:
        """Return ids without the special tokens around them, which come back later."""
        if foreign := [i for i in ids if not 0 <= i < self._num_ids]:
            raise RequestError(
                f"token id {foreign[0]} is not in this model's vocabulary of {self._num_ids}: these ids come from "
                "another model's tokenizer. Send the text itself, or ids from this server's /tokenize "
                "(langchain-openai: check_embedding_ctx_length=False)"
            )
        before, after = self._single.before, self._single.after
        has_specials = ids[: len(before)] == before and ids[len(ids) - len(after) :] == after
        is_whole = has_specials and len(ids) >= len(before) + len(after)
        return ids[len(before) : len(ids) - len(after)] if is_whole else ids

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
        parts: Sequence[WordIds | list[str] | list[int]],
        options: EncodeOptions,
        num_prompt: int,
        spans: Sequence[Sequence[int]] | None,
    ) -> TokenizedText | RequestError:
        try:
            words = [part if isinstance(part, WordIds) else self._look_up(part) for part in parts]
            if len(words) == 2 and not words[1].ids and not isinstance(text, dict):
                words = words[:1]  # as in bert-as-service: nothing behind the separator makes no pair
            template = self._template(words, is_tokenized=isinstance(text, list))
            tokenized = compose(words, template, options, max_seq_len=self._max_seq_len, num_prompt=num_prompt)
            if spans is None:
                return tokenized
            if not isinstance(text, str):
                raise RequestError("spans count the characters of a text: it must be a string")
            return with_spans(tokenized, spans, len(text))
        except RequestError as exc:
            return exc

    def _template(self, words: list[WordIds], *, is_tokenized: bool) -> SpecialTokens:
        if len(words) == 2:
            return self._pair
        if not (is_tokenized and self._no_special_token):
            return self._single
        if not words[0].ids:
            raise RequestError("this text has no token, and no_special_token adds none")
        return self._bare


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
