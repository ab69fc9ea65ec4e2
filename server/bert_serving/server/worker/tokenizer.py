"""Texts to token ids, through the model's own fast tokenizer, without padding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_serving.protocol import Text
from transformers import AutoTokenizer

from ..model_files import ModelError, one_line

_CHARS_PER_TOKEN = 16  # of the text's beginning that is looked at first; texts have about 4
_MARGIN_TOKENS = 16  # that must be left over for the cut to be out of sight of the tokens that are kept
_LONGEST_WORD = 1 << 20
_WHITE_SPACE = re.compile(r"[ \t\r\n]")


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """ids: the tokens that the model sees, special ones included. truncated: some did not fit."""

    ids: list[int]
    truncated: bool


class Tokenizer:
    """A tokenizer whose sequences hold at most `max_seq_len` tokens, cut on the right.

    Safe for one thread at a time; the work itself runs outside of Python's lock.
    """

    def __init__(self, folder: Path, *, max_seq_len: int, do_lower_case: bool = False, prompt: str = "") -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        except Exception as exc:  # whatever a damaged file makes of the libraries that read it
            raise ModelError(f"cannot load the tokenizer in {folder}: {one_line(exc)}") from exc
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"the tokenizer in {folder} has no fast (Rust) form: {type(tokenizer).__name__}")
        self._rust = tokenizer.backend_tokenizer
        self._rust.no_padding()
        self._rust.no_truncation()
        self._prefix, self._suffix = self._special_ids()
        self._rust.enable_truncation(max_seq_len)
        self._max_words = max_seq_len - len(self._prefix) - len(self._suffix)
        self._do_lower_case = do_lower_case
        self._prompt = prompt
        self._unknown_id = tokenizer.unk_token_id
        self.pad_id = tokenizer.pad_token_id or 0

    def __call__(self, texts: Sequence[Text]) -> list[TokenizedText]:
        """Return the ids of each text, in order. A list of tokens is looked up word by word, as it is."""
        plain = [self._prepare(text) for text in texts if isinstance(text, str)]
        encodings = iter(self._encode(plain) if plain else ())
        return [self._from_tokens(t) if isinstance(t, list) else _from_encoding(next(encodings)) for t in texts]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of the ids, as the vocabulary spells them."""
        return [self._rust.id_to_token(i) or "" for i in ids]

    def _encode(self, texts: list[str]) -> list[Any]:
        """Return the encodings of the texts, reading no more of a very long one than its first tokens need."""
        reach = self._max_words * _CHARS_PER_TOKEN
        beginnings = [_beginning(text, reach) for text in texts]
        encodings = self._rust.encode_batch_fast(beginnings)
        for i, text in enumerate(texts):
            size = reach
            while len(beginnings[i]) < len(text) and _num_left_over(encodings[i]) < _MARGIN_TOKENS:
                size *= 4
                beginnings[i] = _beginning(text, size)
                encodings[i] = self._rust.encode_batch_fast([beginnings[i]])[0]
        return list(encodings)

    def _prepare(self, text: str) -> str:
        text = self._prompt + text
        return text.lower() if self._do_lower_case else text

    def _from_tokens(self, tokens: list[str]) -> TokenizedText:
        words = [self._lookup(token) for token in tokens[: self._max_words]]
        return TokenizedText([*self._prefix, *words, *self._suffix], truncated=len(tokens) > self._max_words)

    def _lookup(self, token: str) -> int:
        found = self._rust.token_to_id(token)
        return int(self._unknown_id if found is None else found)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Return the ids that the model wants before and after a text."""
        encoding = self._rust.encode("a")
        words = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: words[0]], encoding.ids[words[-1] + 1 :]


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


def _num_left_over(encoding: Any) -> int:
    return sum(len(part.ids) for part in encoding.overflowing)


def _from_encoding(encoding: Any) -> TokenizedText:
    return TokenizedText(encoding.ids, truncated=bool(encoding.overflowing))
