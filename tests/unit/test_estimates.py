"""The estimate of the tokens of a text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bert_serving.protocol import EncodeRequest
from bert_serving.protocol.workers import Vectors
from bert_serving.server.broker.account import Account
from bert_serving.server.broker.estimates import TokenEstimate
from bert_serving.server.broker.job import Job

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


@pytest.mark.parametrize(
    ("text", "max_tokens", "tokens"),
    [
        ("word " * 100, 512, 127),  # an ordinary text costs only its tokens
        ("word " * 20_000, 512, 512),
        (" " * 1_000_000, 512, 512 + 1_000_000 / 256),  # reading the text takes longer than computing it
        (" " * 4_000_000, 512, 512 + 4096),
        ("word " * 100_000, math.inf, 125_002),  # all of the text is computed
    ],
)
def test_reading_is_part_of_the_cost_of_a_text(text: str, max_tokens: float, tokens: float) -> None:
    held = Account(1, share=1.0).reserve(b"", 1)
    job = Job(1, EncodeRequest(b"a", b"1", [text]), 0.0, b"", held, held, max_text_tokens=max_tokens)
    assert job.tokens_of(text, TokenEstimate().of_text) == tokens
