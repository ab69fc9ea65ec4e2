"""ModelFacts of an invented model, for tests of the broker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bert_serving.protocol.workers import ModelFacts

_FACTS = ModelFacts(
    pid=1,
    fingerprint="0123456789abcdef",
    device="cpu",
    dtype="float32",
    dimension=384,
    hidden_size=384,
    kind="embedding",
    poolings=("REDUCE_MEAN",),
    splits_specials=False,
    prompts={},
    labels=(),
    max_seq_len=512,
    forward="packed",
    parity=1.0,
    tokens_per_s=20_000,
    max_batch_tokens=16_384,
)


def model_facts(**changes: Any) -> ModelFacts:
    """Return plausible facts, in which `changes` replace some values."""
    return replace(_FACTS, **changes)
