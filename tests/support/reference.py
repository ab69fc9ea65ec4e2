"""The reference for an Encoder: Transformers' padded model, with poolings as in papers and bert-as-service.

This file uses no code of the server and makes the masks itself. The model runs in float32 with eager attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

Array = npt.NDArray[np.float64]

STRATEGIES = [
    *("REDUCE_MEAN", "REDUCE_MAX", "REDUCE_MEAN_MAX", "CLS_TOKEN", "FIRST_TOKEN", "SEP_TOKEN", "LAST_TOKEN"),
    *("MEAN_SQRT_LEN", "WEIGHTED_MEAN"),
]


class Reference:
    """The model in a folder. positions: False sets the model's position embeddings to zero."""

    def __init__(self, folder: Path, *, positions: bool = True) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        if not positions:
            self.model.embeddings.position_embeddings.weight.data.zero_()

    def words(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def single(self, text: str | list[str], *, longest: int = 512) -> list[int]:
        """The ids of [CLS] text [SEP], cut on the right to `longest` ids. Tokens are not tokenized again."""
        words = self.words(text) if isinstance(text, str) else self.tokenizer.convert_tokens_to_ids(text)
        return [self.tokenizer.cls_token_id, *words[: longest - 2], self.tokenizer.sep_token_id]

    def pair(self, first: list[int], second: list[int], *, longest: int = 512) -> tuple[list[int], list[int]]:
        """The ids and type ids of [CLS] first [SEP] second [SEP].

        As in bert-as-service, a pair that is too long loses tokens one by one, from the end of the longer text.
        """
        first, second = list(first), list(second)
        while len(first) + len(second) > longest - 3:
            (first if len(first) > len(second) else second).pop()
        sep = self.tokenizer.sep_token_id
        ids = [self.tokenizer.cls_token_id, *first, sep, *second, sep]
        return ids, [0] * (len(first) + 2) + [1] * (len(second) + 1)

    @torch.inference_mode()
    def hidden(
        self,
        ids: Sequence[list[int]],
        *,
        types: Sequence[list[int]] | None = None,
        seen: Sequence[list[int]] | None = None,
    ) -> list[Array]:
        """The hidden states (layers, T, H) of each sequence. seen: attention masks, 1 for a token to attend to."""
        inputs = {
            "input_ids": _padded(ids, self.tokenizer.pad_token_id),
            "attention_mask": _padded(seen or [[1] * len(i) for i in ids], 0),
        }
        if types is not None:
            inputs["token_type_ids"] = _padded(types, 0)
        output = self.model(**inputs, output_hidden_states=True)
        layers = [*output.hidden_states[1:-1], output.last_hidden_state]
        return [
            np.stack([layer[b, : len(sequence)].double().numpy() for layer in layers])
            for b, sequence in enumerate(ids)
        ]

    def pooled(self, first: Array) -> Array:
        """The output of BERT's pooler (dense layer and tanh). first: the last hidden state of the first token."""
        pooler = getattr(self.model.pooler, "dense", self.model.pooler)  # ALBERT's pooler is the layer itself
        weight, bias = (p.detach().double().numpy() for p in (pooler.weight, pooler.bias))
        return np.asarray(np.tanh(weight @ first + bias))


def layers_of(hidden: Array, layers: Sequence[int]) -> Array:
    """The hidden states of these layers, concatenated in this order: (T, H * len(layers))."""
    return np.concatenate([hidden[layer] for layer in layers], axis=1)


def pool(name: str, tokens: Array, mask: Sequence[int] | None = None) -> Array:
    """The vector of one text. tokens: (T, H); mask: 1 for a token to pool, 0 for a token to ignore."""
    m = np.ones(len(tokens)) if mask is None else np.asarray(mask, np.float64)
    position = np.arange(1, len(tokens) + 1) * m
    rows: dict[str, Array] = {
        "REDUCE_MEAN": (tokens * m[:, None]).sum(0) / (m.sum() + 1e-10),
        "REDUCE_MAX": (tokens - (1 - m)[:, None] * 1e30).max(0),
        "CLS_TOKEN": tokens[0],
        "LAST_TOKEN": tokens[max(0, int(m.sum()) - 1)],
        "MEAN_SQRT_LEN": (tokens * m[:, None]).sum(0) / np.sqrt(max(1, m.sum())),
        "WEIGHTED_MEAN": (tokens * position[:, None]).sum(0) / max(1, position.sum()),
    }
    rows["REDUCE_MEAN_MAX"] = np.concatenate([rows["REDUCE_MEAN"], rows["REDUCE_MAX"]])
    return rows[{"FIRST_TOKEN": "CLS_TOKEN", "SEP_TOKEN": "LAST_TOKEN"}.get(name, name)]


def deviation(rows: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The largest difference. If the largest expected value m is above 10, the difference is divided by m / 10."""
    rows, expected = np.asarray(rows), np.asarray(expected)
    assert rows.shape == expected.shape
    return float(np.abs(rows - expected).max() / max(1.0, np.abs(expected).max() / 10))


def _padded(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
