"""Turns texts into token ids, with the model's own fast tokenizer and without padding.

    split_text            text -> its sources: strings, or lists of tokens or ids
    tokenize_strings      strings -> word ids
    Vocabulary.look_up    lists -> word ids
    build_sequences       word ids -> sequences, truncated or in windows, with special tokens

Word ids are the token ids of a text without special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bert_serving.protocol import EncodeOptions, Text
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers
from transformers import AutoTokenizer

from ..model.errors import ModelError, one_line
from .excerpts import ReadingLimit
from .google_vocabulary import read_google_vocabulary
from .long_strings import tokenize_strings
from .sequences import (
    MAX_CHUNKED_TOKENS,
    NO_PROMPT,
    Prompt,
    RequestError,
    TokenizedText,
    WordIds,
    build_sequences,
    with_spans,
)
from .sources import SourceString, split_text
from .special_tokens import NO_SPECIAL_TOKENS, SpecialTokens, special_tokens_of
from .vocabulary import Vocabulary


class Tokenizer:
    """A tokenizer whose sequences have at most `max_seq_len` tokens.

    do_lower_case: lower-case texts before the tokenizer sees them. cased: remove the tokenizer's lower-casing and
    accent-stripping. no_special_token: add no special tokens to texts that are lists of tokens. model_type: the
    tokenizer's family, if the folder does not name it.

    Threads may share a tokenizer: nothing changes after its creation. The Rust code runs without the GIL, so other
    threads continue.
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
                **_google_vocabulary(folder, model_type),
            )
        except Exception as exc:  # a damaged file makes the libraries raise errors of many types
            raise ModelError(f"cannot load the tokenizer in {folder}: {one_line(exc)}") from exc
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"the tokenizer in {folder} has no fast (Rust) version: {type(tokenizer).__name__}")
        self._rust = _cased(tokenizer.backend_tokenizer) if cased else tokenizer.backend_tokenizer
        self._rust.no_padding()
        self._rust.no_truncation()
        # Google's tokenizer reads "[SEP]" in a text as a word and brackets, not as a special token.
        self._rust.encode_special_tokens = model_type is not None
        self._single = special_tokens_of(self._rust.encode("a"))
        self._pair = special_tokens_of(self._rust.encode("a", "a"))
        if "token_type_ids" not in tokenizer.model_input_names:  # Transformers passes no type ids to such models
            self._pair = self._pair.without_type_ids()
        self._max_seq_len = max_seq_len
        self._do_lower_case = do_lower_case and not cased
        self._no_special_token = no_special_token
        self._vocabulary = Vocabulary(self._rust, special_tokens=self._single, unknown_id=tokenizer.unk_token_id)
        self.pad_id: int = tokenizer.pad_token_id or 0
        # If Google's vocabulary has no [PAD], Transformers adds it after the end, where the model has no
        # embedding. bert-as-service then pads with the first token.
        if model_type is not None and self.pad_id >= tokenizer.vocab_size:
            self.pad_id = 0

    def __call__(
        self,
        texts: Sequence[Text],
        options: EncodeOptions = EncodeOptions(),  # noqa: B008
        *,
        prompt: str = "",
        pool_prompt: bool = True,
        spans: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[TokenizedText | RequestError]:
        """Return the tokenized texts in order; a text that cannot be tokenized has an error in its place.

        Tokens in a list are looked up in the vocabulary; ids are used as given. prompt: put before every text that
        is not a list. pool_prompt: whether pooling includes the prompt's tokens. spans: for each text its spans,
        each [start, end) in characters.
        """
        limit = self._reading_limit(options)
        lower = self._do_lower_case
        sources = [split_text(text, limit, prompt=prompt, pairs=options.pairs, lower=lower) for text in texts]
        strings = [source for of_text in sources for source in of_text if isinstance(source, SourceString)]
        with_offsets = options.show_offsets or spans is not None
        tokenized = iter(
            tokenize_strings(self._rust, strings, limit, with_offsets=with_offsets) if strings else ()
        )
        used_prompt = Prompt(self._num_words(prompt) if prompt else 0, is_pooled=pool_prompt)
        results: list[TokenizedText | RequestError] = []
        for i, of_text in enumerate(sources):
            inputs = [next(tokenized) if isinstance(source, SourceString) else source for source in of_text]
            spans_of_text = None if spans is None else spans[i]
            results.append(self._build_or_refuse(texts[i], inputs, options, used_prompt, spans_of_text))
        return results

    @property
    def num_ids(self) -> int:
        """The largest token id plus one, added tokens included."""
        return self._vocabulary.num_ids

    def to_json(self) -> str:
        """Return the model's own tokenizer in the format of tokenizer.json."""
        return str(self._rust.to_str())

    def save(self, path: Path) -> None:
        """Write the tokenizer to a file that the tokenizers library reads. Raises OSError, as for a full disk."""
        rust = RustTokenizer.from_str(self._rust.to_str())
        if self._do_lower_case:
            first = [normalizers.Lowercase()]
            rust.normalizer = normalizers.Sequence(first if rust.normalizer is None else [*first, rust.normalizer])
        path.write_text(rust.to_str(), encoding="utf-8")  # `rust.save` would not raise OSError

    @property
    def splits_specials(self) -> bool:
        """Whether the name of a special token in a text is split into words. `save` does not store this fact."""
        return bool(self._rust.encode_special_tokens)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the token of each id as the vocabulary spells it."""
        return self._vocabulary.tokens(ids)

    def _reading_limit(self, options: EncodeOptions) -> ReadingLimit:
        if options.long_text == "chunk":
            return ReadingLimit(MAX_CHUNKED_TOKENS)
        return ReadingLimit(self._max_seq_len, from_end=options.truncate == "left")

    def _num_words(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, without special tokens."""
        string = prompt.lower() if self._do_lower_case else prompt
        return len(self._rust.encode(string, add_special_tokens=False).ids)

    def _build_or_refuse(
        self,
        text: Text,
        inputs: Sequence[WordIds | list[str] | list[int]],
        options: EncodeOptions,
        prompt: Prompt,
        spans: Sequence[Sequence[int]] | None,
    ) -> TokenizedText | RequestError:
        """Return the tokenized text, or its error. inputs: word ids of strings, and lists of tokens or ids."""
        try:
            word_ids = [
                one if isinstance(one, WordIds) else self._vocabulary.look_up(one, self._reading_limit(options))
                for one in inputs
            ]
            if len(word_ids) == 2 and not word_ids[1].ids and not isinstance(text, dict):
                word_ids = word_ids[:1]  # nothing follows the separator: not a pair, as in bert-as-service
            special_tokens = self._special_tokens(word_ids, is_tokenized=isinstance(text, list))
            tokenized = build_sequences(
                word_ids,
                special_tokens,
                options,
                max_seq_len=self._max_seq_len,
                prompt=NO_PROMPT if isinstance(text, list) else prompt,
            )
            if spans is None:
                return tokenized
            if not isinstance(text, str):
                raise RequestError("spans are counted in characters: the text must be a string")
            return with_spans(tokenized, spans, len(text))
        except RequestError as exc:
            return exc

    def _special_tokens(self, word_ids: list[WordIds], *, is_tokenized: bool) -> SpecialTokens:
        if len(word_ids) == 2:
            return self._pair
        if not (is_tokenized and self._no_special_token):
            return self._single
        if not word_ids[0].ids:
            raise RequestError("this text has no token, and with no_special_token none is added")
        return NO_SPECIAL_TOKENS


def _google_vocabulary(folder: Path, model_type: str | None) -> dict[str, dict[str, int]]:
    """Return the argument with which Transformers does not read vocab.txt itself; empty unless it is Google's."""
    path = folder / "vocab.txt"
    if model_type != "bert" or (folder / "tokenizer.json").is_file() or not path.is_file():
        return {}
    return {"vocab": read_google_vocabulary(path)}


def _cased(rust: RustTokenizer) -> RustTokenizer:
    """Return the tokenizer without its lower-casing and accent-stripping."""
    state = json.loads(rust.to_str())
    state["normalizer"] = _cased_normalizer(state["normalizer"])
    return RustTokenizer.from_str(json.dumps(state))


def _cased_normalizer(normalizer: dict[str, object] | None) -> dict[str, object] | None:
    """Return a normalizer in the format of tokenizer.json, without lower-casing and accent-stripping."""
    kind = (normalizer or {}).get("type")
    if normalizer is None or kind in ("Lowercase", "StripAccents"):
        return None
    if kind == "BertNormalizer":
        return normalizer | {"lowercase": False, "strip_accents": False}
    inner = normalizer.get("normalizers")
    if kind == "Sequence" and isinstance(inner, list):
        kept = [_cased_normalizer(one) for one in inner]
        return normalizer | {"normalizers": [one for one in kept if one is not None]}
    return normalizer
