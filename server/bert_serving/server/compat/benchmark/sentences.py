"""The sentences that the benchmark's clients send. This file imports little, because every client imports it."""

from __future__ import annotations

import random
from collections.abc import Sequence

FULL = "full-length sentences"
MIXED = "sentences of mixed length"


def make_sentences(vocabulary: Sequence[str], count: int, longest: int, *, protocol: str, seed: int) -> list[str]:
    """Return random sentences of `longest` words each, or of 1 to `longest` words if the protocol is MIXED."""
    rng = random.Random(seed)
    lengths = (rng.randint(1, longest) if protocol == MIXED else longest for _ in range(count))
    return [" ".join(rng.choices(vocabulary, k=length)) for length in lengths]


def vocabulary_of(text: str) -> list[str]:
    """Return the distinct words of a text, in the same order on every machine."""
    return sorted(set(text.split()))
