"""Reads the vocabulary of a Google checkpoint as bert-as-service does: FullTokenizer in bert/tokenization.py."""

from __future__ import annotations

from pathlib import Path


def read_google_vocabulary(path: Path) -> dict[str, int]:
    """Return the id of each token in a vocab.txt, which has one token on each line. Raises OSError or ValueError.

    White space around a token is not part of it; white space is what Python's `str.strip` removes. Only a newline
    ends a line, and carriage returns are ignored everywhere, as in TensorFlow's reader. An empty line has an id
    too. If several lines have the same token, it has the id of the last one.
    """
    text = path.read_bytes().replace(b"\r", b"").decode("utf-8")
    lines = text.removesuffix("\n").split("\n") if text else []
    tokens = [line.strip() for line in lines]
    ids = {token: i for i, token in enumerate(tokens)}
    # The ids of the earlier lines get names that no word can have. Without names, the tokenizers library reports
    # a damaged vocabulary, and Transformers gives the ids to special tokens that the vocabulary lacks.
    unused = {f"{token} (line {i + 1})": i for i, token in enumerate(tokens) if ids[token] != i}
    return unused | ids
