"""Look-up of tokens and ids in the vocabulary of the model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from bert_serving.protocol import shortened
from tokenizers import Tokenizer as RustTokenizer

from .excerpts import ReadingLimit
from .sequences import NO_OFFSETS, RequestError, WordIds
from .special_tokens import SpecialTokens


class Vocabulary:
    """The tokens and ids that a tokenizer knows.

    special_tokens: the special tokens around a text that is not a pair. unknown_id: id of the token for unknown
    words; None if the vocabulary has no such token.
    """

    def __init__(self, rust: RustTokenizer, *, special_tokens: SpecialTokens, unknown_id: int | None) -> None:
        self._rust = rust
        self._special_tokens = special_tokens
        self._unknown_id = unknown_id
        #: The largest token id plus one, added tokens included. Some smaller ids may have no token.
        self.num_ids: int = max(rust.get_vocab(with_added_tokens=True).values()) + 1

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the token of each id as the vocabulary spells it; "" for an id without a token."""
        return [self._rust.id_to_token(i) or "" for i in ids]

    def look_up(self, tokens: list[str] | list[int], limit: ReadingLimit) -> WordIds:
        """Return the word ids of a list of tokens or of ids. Raises RequestError for an unknown token or id.

        limit: of a longer list, one more token than limit.num_tokens is read.
        """
        known = self._without_specials(tokens) if _are_ids(tokens) else tokens
        size = limit.num_tokens + 1
        read = known[-size:] if limit.from_end else known[:size]
        ids = [token if isinstance(token, int) else self._id_of(token) for token in read]
        return WordIds(ids, unread=None if len(read) == len(known) else NO_OFFSETS)

    def _without_specials(self, ids: list[int]) -> list[int]:
        """Return the ids without the special tokens at both ends, which are added again later."""
        if not 0 <= min(ids) <= max(ids) < self.num_ids:
            unknown = next(i for i in ids if not 0 <= i < self.num_ids)
            raise RequestError(
                f"token id {unknown} is not in this model's vocabulary of {self.num_ids}: these ids come from "
                "another model's tokenizer. Send the text itself, or ids from this server's /tokenize "
                "(langchain-openai: check_embedding_ctx_length=False)"
            )
        before, after = self._special_tokens.before, self._special_tokens.after
        has_specials = ids[: len(before)] == before and ids[len(ids) - len(after) :] == after
        has_both = has_specials and len(ids) >= len(before) + len(after)
        return ids[len(before) : len(ids) - len(after)] if has_both else ids

    def _id_of(self, token: str) -> int:
        found = self._rust.token_to_id(token)
        found = self._unknown_id if found is None else found
        if found is None:
            raise RequestError(
                f"token {shortened(token)} is not in the vocabulary, which has no token for unknown words"
            )
        return int(found)


def _are_ids(tokens: list[str] | list[int]) -> TypeGuard[list[int]]:
    """Return whether a list holds ids. All items of a list have the same type; an empty list counts as tokens."""
    return bool(tokens) and isinstance(tokens[0], int)
