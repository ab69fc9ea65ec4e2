"""The estimate of the tokens of a text."""

from __future__ import annotations

import numpy as np
from bert_serving.protocol.workers import Vectors
from bert_serving.server.broker.estimates import TokenEstimate

ROW = np.zeros((1, 1), np.float32)


def learn(estimate: TokenEstimate, text: str, num_tokens: int) -> None:
    estimate.learn([([text], Vectors(ROW, [num_tokens]))], num_tokens)


def test_the_estimate_follows_the_texts() -> None:
    estimate = TokenEstimate()
    for _ in range(1000):
        learn(estimate, "word " * 100, 102)
    assert 95 < estimate.of_text("word " * 100) < 110


def test_texts_of_blanks_do_not_make_long_texts_look_short() -> None:
    """One client could send such texts, and all clients share the estimate."""
    estimate = TokenEstimate()
    for _ in range(1000):
        learn(estimate, "word " * 50 + " " * 1_000_000 + "word " * 50, 102)
    assert estimate.of_text("word " * 512) > 512 * 5 / 18
