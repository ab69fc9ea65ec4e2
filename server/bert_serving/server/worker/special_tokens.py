"""Special tokens of a model, such as [CLS] and [SEP], and type ids, which tell the strings of a pair apart."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Encoding

from ..model.errors import ModelError


class TypeIds(NamedTuple):
    """Token type ids.

    before, between, after: a type id for each special token. first, second: the type id of all words of
    the first and of the second string.
    """

    before: list[int]
    first: int
    between: list[int]
    second: int
    after: list[int]


class SpecialTokens(NamedTuple):
    """The ids of the special tokens before, between and after the words, and the type ids of all tokens.

    between: empty for a text that is not a pair.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    type_ids: TypeIds

    def without_type_ids(self) -> SpecialTokens:
        """Return the same tokens with all type ids 0, for a model without type ids."""
        before, between, after = ([0] * len(ids) for ids in (self.before, self.between, self.after))
        return self._replace(type_ids=TypeIds(before, 0, between, 0, after))

    @property
    def num_specials(self) -> int:
        """The number of special tokens in a sequence."""
        return len(self.before) + len(self.between) + len(self.after)


#: The special tokens of texts that are lists of tokens, if no_special_token is set.
NO_SPECIAL_TOKENS = SpecialTokens([], [], [], TypeIds([], 0, [], 0, []))


def special_tokens_of(encoding: Encoding) -> SpecialTokens:
    """Return the special tokens in the encoding of one word, or of a pair of one-word strings.

    Raises ModelError if the encoding has only special tokens.
    """
    ids, types = encoding.ids, encoding.type_ids
    words = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    if not words:
        raise ModelError("the tokenizer has no token for the letter a: it does not belong to a text model")
    first, last = words[0], words[-1]
    between = sorted(set(range(first, last)) - set(words))
    return SpecialTokens(
        ids[:first],
        [ids[i] for i in between],
        ids[last + 1 :],
        TypeIds(types[:first], types[first], [types[i] for i in between], types[last], types[last + 1 :]),
    )
