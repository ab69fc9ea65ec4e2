"""Converts the logits of a classification head to probabilities, labels and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from bert_serving.protocol import EncodeReply, InvalidRequest, Rows
from typing_extensions import TypedDict

from .context import RequestContext
from .texts import Names, Results

#: What Python needs for a number with its name in an object of its own.
NAMED_BYTES = 256


class LabelScore(TypedDict):
    """A label and its score."""

    score: float
    label: str


async def labelled(
    context: RequestContext, texts: Sequence[object], names: Names, *, raw: bool, **options: object
) -> tuple[Results, EncodeReply]:
    """Return the labels of each text with their scores, highest score first, and the whole reply.

    A text with an error has None; a text may be empty. texts, names, options: as in Service.encode. raw:
    the scores are logits, not probabilities.
    """
    service = context.service
    await service.model()  # while the first model loads, this raises Unavailable
    names = replace(names, may_be_empty=True)
    logits, reply = await service.vectors(texts, names, pooling_strategy="LOGITS", **options)
    scores = logits if raw else normalized(logits)
    context.hold(scores.size * NAMED_BYTES)
    labels = (await service.model_of(reply)).labels
    return service.notes.nulled(await context.off_loop(label_scores, scores, labels)), reply


def normalized(logits: Rows) -> Rows:
    """Return the probability of each label, (B, L): the sigmoid if there is one label, else the softmax."""
    if logits.shape[1] == 1:
        return sigmoid(logits)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Rows = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def relevance(logits: Rows, *, raw: bool) -> Rows:
    """Return the score of each pair, (B,). raw: return the logits, without the sigmoid.

    Raises InvalidRequest if the model has several labels.
    """
    if logits.shape[1] != 1:
        raise InvalidRequest(
            f"reranking needs a model with one label, this model has {logits.shape[1]}: use /predict"
        )
    return logits[:, 0] if raw else sigmoid(logits[:, 0])


def sigmoid(values: Rows) -> Rows:
    """Return 1 / (1 + exp(-x)), computed without overflow."""
    powers = np.exp(-np.abs(values))
    scores: Rows = np.where(values >= 0, 1, powers) / (1 + powers)
    return scores.astype(values.dtype)


def label_scores(scores: Rows, labels: Sequence[str]) -> list[list[LabelScore]]:
    """Return the labels of each text with their scores, highest score first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        [{"score": float(row[i]), "label": labels[i]} for i in of_text]
        for row, of_text in zip(scores, order, strict=True)
    ]


def ranked(scores: Rows) -> list[tuple[int, float]]:
    """Return (index, score) of each text, highest score first."""
    return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")]
