"""Estimates for the scheduler: the tokens of a text, and the speed of a worker.

The broker does not tokenize. It estimates tokens from the length of a text, and corrects its estimates with what
the workers report about each batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from bert_serving.protocol import Text
from bert_serving.protocol.workers import Vectors

from .job import Slice

#: The texts of one slice, and what the worker returned for them.
ComputedTexts: TypeAlias = tuple[Sequence[Text], Vectors]

_SMOOTHING = 0.2  # weight of the newest batch in a running estimate
_FULL_WEIGHT_TOKENS = 4096  # a batch of fewer tokens has less weight in the estimate of characters per token
_MAX_CHARS_PER_TOKEN = (
    16  # a text with more is unusual, such as one of white space; it must not change the estimate
)
_NUM_SPECIAL_TOKENS = 2


class TokenEstimate:
    """Running estimate of how many tokens texts have."""

    def __init__(self) -> None:
        self._chars_per_token = 4.0
        self.tokens_per_text = 16.0

    def of_text(self, text: Text) -> float:
        """Return the estimated tokens of a text, special ones included."""
        if isinstance(text, list):
            return len(text) + _NUM_SPECIAL_TOKENS
        num_chars = len(text) if isinstance(text, str) else len(text["text"]) + len(text["text_pair"])
        return num_chars / self._chars_per_token + _NUM_SPECIAL_TOKENS

    def of_slices(self, slices: Iterable[Slice]) -> float:
        """Return the estimated tokens of all texts in the slices."""
        return sum(slice_.job.tokens_of(text, self.of_text) for slice_ in slices for text in slice_.texts)

    def learn(self, computed: Sequence[ComputedTexts], num_tokens: int) -> None:
        """Correct the estimate with a batch of at least one text. num_tokens: tokens of the whole batch."""
        num_texts = sum(len(texts) for texts, _ in computed)
        self.tokens_per_text += _SMOOTHING * (num_tokens / num_texts - self.tokens_per_text)
        self._learn_chars_per_token(computed)

    def _learn_chars_per_token(self, computed: Sequence[ComputedTexts]) -> None:
        chars = tokens = 0
        for texts, vectors in computed:
            for text_chars, text_tokens in _whole_texts(texts, vectors):
                chars += min(text_chars, _MAX_CHARS_PER_TOKEN * text_tokens)
                tokens += text_tokens - _NUM_SPECIAL_TOKENS
        if tokens > 0:
            # Weighted by tokens, so that one unusual text (a long word that is one token) changes little.
            weight = min(_SMOOTHING, tokens / _FULL_WEIGHT_TOKENS)
            self._chars_per_token += weight * (chars / tokens - self._chars_per_token)


def _whole_texts(texts: Sequence[Text], vectors: Vectors) -> Iterable[tuple[int, int]]:
    """Return (characters, tokens) of the strings that were not truncated: of others, the tokens are not known."""
    if not vectors.truncated and set(map(type, texts)) == {str}:
        return zip(map(len, texts), vectors.num_tokens, strict=True)
    return [
        (len(text), num_tokens)
        for i, (text, num_tokens) in enumerate(zip(texts, vectors.num_tokens, strict=True))
        if i not in vectors.truncated and isinstance(text, str)
    ]


@dataclass(slots=True)
class RateEstimate:
    """Running estimate of a worker's speed. tokens_per_s: at first, the speed during the warm-up.

    floor_tokens_per_s: the estimate never falls below this rate. Small batches run at a lower rate. Without a
    floor, small batches would lower the estimate, a lower estimate would make batches smaller, and the
    batches would never grow again.
    """

    tokens_per_s: float
    floor_tokens_per_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.floor_tokens_per_s = self.tokens_per_s / 4

    def learn(self, num_tokens: int, busy_ms: float) -> None:
        """Correct the estimate with a batch."""
        rate = num_tokens / busy_ms * 1000
        self.tokens_per_s += _SMOOTHING * (rate - self.tokens_per_s)
        self.tokens_per_s = max(self.tokens_per_s, self.floor_tokens_per_s)
