"""The pooler and the classification head of a model. Both compute rows from the vectors of first tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.errors import ModelError


@dataclass(frozen=True, slots=True)
class Pooler:
    """The pooler of an encoder: a dense layer with tanh, applied to the first token of the last layer."""

    model: PreTrainedModel

    @torch.inference_mode()
    def __call__(self, first: Tensor) -> Tensor:
        """Return the pooled rows, (B, H) float32. first: vectors of first tokens, (B, H)."""
        model = self.model
        first = first.to(model.dtype)
        if hasattr(model, "pooler_activation"):  # ALBERT
            pooled: Tensor = model.pooler_activation(model.pooler(first))
        else:
            pooled = model.pooler(first[:, None])
        return pooled.float()


def pooler_of(model: PreTrainedModel) -> Pooler | None:
    """Return the pooler of an encoder, or None if the encoder has none."""
    return None if getattr(model, "pooler", None) is None else Pooler(model)


@dataclass(frozen=True, slots=True)
class Classifier:
    """The head of a model for sequence classification, in float32.

    head: maps the first tokens' vectors in the last layer, (B, H), to logits, (B, number of labels). labels: the
    names of the labels.
    """

    head: Callable[[Tensor], Tensor]
    labels: tuple[str, ...]

    @torch.inference_mode()
    def logits(self, first: Tensor) -> Tensor:
        """Return the head's raw output, (B, number of labels)."""
        return self.head(first.float())

    def probabilities(self, first: Tensor) -> Tensor:
        """Return the softmax over the logits, (B, number of labels)."""
        return torch.softmax(self.logits(first), dim=1)

    def score(self, first: Tensor) -> Tensor:
        """Return the sigmoid of the only logit, (B, 1), which is REGRESSION in bert-as-service."""
        return torch.sigmoid(self.logits(first))


def classifier_of(model: PreTrainedModel) -> Classifier:
    """Return the head of one of Transformers' models for sequence classification.

    Raises ModelError for a head that is not supported, such as one that also reads other tokens than the first.
    """
    labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    return Classifier(_head_of(model), labels)


def _head_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    # The families differ in what they apply between the last layer's first token and the final linear layer.
    layer, top_pooler = getattr(model, "classifier", None), getattr(model, "pooler", None)
    if getattr(model.config, "classifier_pooling", "cls") != "cls" or not isinstance(layer, nn.Module):
        raise ModelError(f"the classification head of {type(model).__name__} is not supported")
    if hasattr(model, "pre_classifier"):  # DistilBERT
        return lambda first: layer(torch.relu(model.pre_classifier(first)))
    if top_pooler is not None:  # DeBERTa
        return lambda first: layer(top_pooler(first[:, None]))
    if hasattr(model, "head"):  # ModernBERT
        return lambda first: layer(model.head(first))
    if not isinstance(layer, nn.Linear):  # RoBERTa, ELECTRA, MPNet and the like: `layer` picks the first token
        return lambda first: layer(first[:, None])
    pooler = pooler_of(model.base_model)
    if pooler is not None:  # BERT, ALBERT
        return lambda first: layer(pooler(first))
    raise ModelError(f"the classification head of {type(model).__name__} needs a pooler, and the model has none")
