"""The classification head of a fine-tuned model: first tokens in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.errors import ModelError


@dataclass(frozen=True, slots=True)
class Classifier:
    """What a model for sequence classification has behind its encoder, in float32.

    head: of first tokens of the last layer, (B, H) -> (B, number of labels). labels: their names.
    """

    head: Callable[[Tensor], Tensor]
    labels: tuple[str, ...]

    @torch.inference_mode()
    def logits(self, first: Tensor) -> Tensor:
        """Return the head's raw output, (B, number of labels)."""
        return self.head(first.float())

    def probabilities(self, first: Tensor) -> Tensor:
        """Return the softmax of the logits, (B, number of labels)."""
        return torch.softmax(self.logits(first), dim=1)

    def score(self, first: Tensor) -> Tensor:
        """Return the sigmoid of the only logit, (B, 1), as bert-as-service's REGRESSION."""
        return torch.sigmoid(self.logits(first))


def classifier_of(model: PreTrainedModel, pooled: Callable[[Tensor], Tensor]) -> Classifier:
    """Return the head of one of Transformers' models for sequence classification.

    pooled: what its encoder's pooler makes of first tokens, in float32, if it has one.
    Raises ModelError for a family whose head works on anything else than first tokens.
    """
    labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    return Classifier(_logits(model, pooled), labels)


def _logits(model: PreTrainedModel, pooled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # The families differ in what stands between the first token and the last layer.
    layer, own_pooler = getattr(model, "classifier", None), getattr(model, "pooler", None)
    if getattr(model.config, "classifier_pooling", "cls") != "cls" or not isinstance(layer, nn.Module):
        raise ModelError(f"the classification head of {type(model).__name__} is not supported")
    if hasattr(model, "pre_classifier"):  # DistilBERT
        return lambda first: layer(torch.relu(model.pre_classifier(first)))
    if own_pooler is not None:  # DeBERTa
        return lambda first: layer(own_pooler(first[:, None]))
    if hasattr(model, "head"):  # ModernBERT
        return lambda first: layer(model.head(first))
    if not isinstance(layer, nn.Linear):  # RoBERTa, ELECTRA, MPNet and theirs: it picks the first token itself
        return lambda first: layer(first[:, None])
    if getattr(model.base_model, "pooler", None) is not None:  # BERT, ALBERT
        return lambda first: layer(pooled(first))
    raise ModelError(f"the classification head of {type(model).__name__} needs a pooler, which it has not")
