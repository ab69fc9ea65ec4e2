"""Natural sentences for the tests, the same on every machine with the same version of Python."""

from __future__ import annotations

import random
import re
from pydoc_data.topics import topics

# Texts that are difficult for a tokenizer.
ODD = [
    "a",
    "...",
    ":-)",
    "東京は日本の首都です。",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "👍🏽 thumbs up 🎉🎉",
    "naïve café Zürich ÅNGSTRÖM",
    "x" * 300,
    "[CLS] a bracketed [SEP] thing [MASK]",
    "tab\tand\nnewline and   spaces",
    "word " * 400,
    "1234567890 3.14159 0xDEADBEEF",
    "https://example.org/path?query=1&b=2#frag",
]


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Return this number of sentences of 1 to 400 words: most are from Python's manual, some are from ODD."""
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    found = [s.strip() for s in re.split(r"(?<=[.!?:]) ", text)]
    found = sorted({s for s in found if 3 <= len(s) <= 1000})
    rng = random.Random(seed)
    picked = rng.sample(found, min(count, len(found)))
    while len(picked) < count:
        picked.append(f"{rng.choice(found)} {len(picked)}")
    for i, odd in enumerate(ODD[: count // 10]):
        picked[i * 7 % count] = odd
    return picked


def numbered(text: str, count: int) -> list[str]:
    """Return this number of different texts. Equal ones would be computed only once."""
    return [f"{i} {text}" for i in range(count)]
