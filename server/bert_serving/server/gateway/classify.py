"""Logits of a classification head to what callers want of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bert_serving.protocol import InvalidRequest, Rows


def normalized(logits: Rows) -> Rows:
    """Return probabilities of labels, (B, L): softmax, or the sigmoid of an only logit."""
    if logits.shape[1] == 1:
        return sigmoid(logits)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Rows = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def relevance(logits: Rows, *, raw: bool) -> Rows:
    """Return the score of each pair, (B,). Raises InvalidRequest for a model that is no reranker."""
    if logits.shape[1] != 1:
        raise InvalidRequest(f"a reranker has one label, this model has {logits.shape[1]}: see /predict")
    return logits[:, 0] if raw else sigmoid(logits[:, 0])


def sigmoid(values: Rows) -> Rows:
    """Return 1 / (1 + exp(-x)), without overflow."""
    powers = np.exp(-np.abs(values))
    scores: Rows = np.where(values >= 0, 1, powers) / (1 + powers)
    return scores.astype(values.dtype)


def label_scores(scores: Rows, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Return for each text its labels with their scores, the best first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        [{"score": float(row[i]), "label": labels[i]} for i in of_text]
        for row, of_text in zip(scores, order, strict=True)
    ]


def ranked(scores: Rows) -> list[tuple[int, float]]:
    """Return (index, score), the best first."""
    return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")]
