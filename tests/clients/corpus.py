"""The texts and the API key that the clients send."""

from __future__ import annotations

from tests.support.sentences import ODD, sentences

TEXTS = [*sentences(9, seed=5), *ODD]
QUERY = "the quick brown fox"
DOCUMENTS = ["one two three", "hello world", "the lazy dog jumps over the fox", "a", "five six words"]
KEY = "secret"
