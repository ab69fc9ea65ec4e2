"""Sparse vectors: a weight for each term of the vocabulary. Formal et al. 2021 (SPLADE v2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from bert_serving.protocol import Rows
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.errors import ModelError

_MAX_LOGITS = 1 << 25  # logits computed at once (128 MiB); they are about a hundred times as wide as hidden states


class SpladeHead:
    """The masked-language-model head of a model, and the pooling over its logits.

    squashes_twice: apply log(1 + x) twice, as in OpenSearch's models.
    """

    def __init__(self, model: PreTrainedModel, *, squashes_twice: bool = False) -> None:
        # A copy on a GPU: the last layer is often the embedding table, whose dtype may change with the encoder's.
        self._logits, self._dtype = _head_of(model if model.device.type == "cpu" else copy.deepcopy(model))
        self._squashes_twice = squashes_twice
        self.num_terms = int(model.config.vocab_size)
        #: Number of tokens, or of texts, whose weights for all terms may be computed at once.
        self.rows_at_once = max(1, _MAX_LOGITS // self.num_terms)

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the weight of each term in each text, (B, V) float32: the maximum over the text's tokens.

        hidden: hidden states of the last layer, (T, H), the texts end to end. lengths: the number of tokens of
        each text, T in total.
        """
        weights = hidden.new_full((len(lengths), self.num_terms), -torch.inf, dtype=torch.float32)
        size = self.rows_at_once
        for start in range(0, len(hidden), size):
            logits = self._logits(hidden[start : start + size].to(self._dtype)).float()
            for i, rows in _ranges(lengths, start, start + size):
                torch.maximum(weights[i], logits[rows].amax(0), out=weights[i])
        weights = weights.relu().log1p()
        return weights.log1p() if self._squashes_twice else weights


def _ranges(lengths: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """Return the texts that have tokens from `start` to `stop`, and which of these tokens belong to each text."""
    begin = 0
    for i, length in enumerate(lengths):
        end = begin + length
        if begin < stop and end > start:
            yield i, slice(max(begin, start) - start, min(end, stop) - start)
        begin = end


def nonzero_terms(weights: Tensor) -> Tensor:
    """Return (text, index, weight) of the weights that are not 0, text after text: (n, 3) float32.

    weights: (B, V). Texts and indices are exact up to 2**24. Waits for the device.
    """
    texts, indices = weights.nonzero().unbind(1)
    return torch.stack([texts.to(weights.dtype), indices.to(weights.dtype), weights[texts, indices]], dim=1)


def terms_of_texts(nonzero: Rows, num_texts: int) -> list[Rows]:
    """Return the (index, weight) of each text's terms, (n, 2). nonzero: what `nonzero_terms` returns."""
    stops = np.searchsorted(nonzero[:, 0], np.arange(1, num_texts))
    return [np.ascontiguousarray(of_text) for of_text in np.split(nonzero[:, 1:], stops)]


def _head_of(model: PreTrainedModel) -> tuple[Callable[[Tensor], Tensor], torch.dtype]:
    """Return a function from hidden states to logits, and the dtype of its input. Raises ModelError."""
    found: list[nn.Module]
    if hasattr(model, "vocab_projector"):  # DistilBERT
        found = [model.vocab_transform, model.activation, model.vocab_layer_norm, model.vocab_projector]
    elif hasattr(model, "decoder") and hasattr(model, "head"):  # ModernBERT
        found = [model.head, model.decoder]
    elif hasattr(model, "cls") or hasattr(model, "lm_head"):  # BERT, NomicBERT; RoBERTa, MPNet and the like
        found = [model.cls if hasattr(model, "cls") else model.lm_head]
    else:
        raise ModelError(f"SPLADE: the head of {type(model).__name__} is not supported")
    head = nn.Sequential(*found)
    return head, next(head.parameters()).dtype
