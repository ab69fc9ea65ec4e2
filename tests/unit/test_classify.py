"""Logits become probabilities, labels and rankings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bert_serving.protocol import InvalidRequest
from bert_serving.server.gateway.classify import label_scores, normalized, ranked, relevance, sigmoid

EXTREMES = np.array([-1e38, -1000.0, -88.0, -1.0, 0.0, 1e-8, 1.0, 88.0, 1000.0, 1e38], np.float32)


def test_sigmoid_and_softmax_equal_those_of_torch_and_do_not_overflow() -> None:
    logits = np.stack([EXTREMES, EXTREMES[::-1], np.zeros(10, np.float32)])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores, probabilities = sigmoid(EXTREMES), normalized(logits)
    np.testing.assert_allclose(scores, torch.sigmoid(torch.from_numpy(EXTREMES)), atol=1e-7)
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(logits), dim=1), atol=1e-7)
    assert scores.dtype == probabilities.dtype == np.float32


def test_a_single_logit_becomes_a_sigmoid() -> None:
    np.testing.assert_array_equal(normalized(EXTREMES[:, None]), sigmoid(EXTREMES)[:, None])


def test_labels_are_ordered_by_score() -> None:
    found = label_scores(np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], np.float32), ["a", "b", "c"])
    assert found == [
        [{"score": 0.5, "label": "b"}, {"score": 0.25, "label": "a"}, {"score": 0.25, "label": "c"}],
        [{"score": 1.0, "label": "a"}, {"score": 0.0, "label": "b"}, {"score": 0.0, "label": "c"}],
    ]


def test_ranks_are_ordered_by_score_then_by_position() -> None:
    assert ranked(np.array([0.5, 2.0, 0.5, -1.0])) == [(1, 2.0), (0, 0.5), (2, 0.5), (3, -1.0)]


def test_relevance_is_one_number_for_each_pair() -> None:
    assert relevance(EXTREMES[:, None], raw=True).tolist() == EXTREMES.tolist()
    assert relevance(EXTREMES[:, None], raw=False).tolist() == sigmoid(EXTREMES).tolist()
    with pytest.raises(InvalidRequest, match="reranking needs a model with one label, this model has 3"):
        relevance(np.zeros((2, 3), np.float32), raw=True)
