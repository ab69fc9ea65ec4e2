"""The texts that the systems encode."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.sentences import sentences

_NUM_SPECIAL = 2  # [CLS] and [SEP]


def natural(count: int, *, seed: int = 0) -> list[str]:
    """Return this number of sentences of natural length."""
    return sentences(count, seed=seed)


def repeated(count: int) -> list[str]:
    """Return sentences of which each occurs twice, in random order."""
    half = natural((count + 1) // 2)
    both = [*half, *half][:count]
    random.Random(1).shuffle(both)
    return both


def of_tokens(folder: Path, num_tokens: int, count: int) -> list[str]:
    """Return different texts that each have this number of tokens, special tokens included.

    folder: of the model; its tokenizer must be a WordPiece tokenizer of BERT.
    """
    vocab: dict[str, int] = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = [word for word in vocab if word.isascii() and word.isalpha() and word.islower() and len(word) > 3]
    rng = random.Random(num_tokens)
    return [" ".join(rng.choices(words, k=num_tokens - _NUM_SPECIAL)) for _ in range(count)]
