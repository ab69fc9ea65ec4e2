"""Texts in, vectors out: one model on one device, with no knowledge of sockets or jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bert_serving.protocol import Rows, Text

from ..model_files import (
    ModelError,
    check_max_seq_len,
    read_sentence_transformers,
    resolve_model_dir,
)
from .attention import pad
from .checkpoint import load_model, num_hidden_layers
from .device import pick_device, pick_dtype
from .packing import plan_micro_batches
from .pooling import pool
from .tokenizer import TokenizedText, Tokenizer

# Micro-batches of this size keep a CPU's activations in its caches (1,000 to 2,000 measured best);
# a GPU wants as many tokens as there are.
_CPU_MICRO_BATCH_TOKENS = 2048

_DEFAULT_LAYERS = (-2,)  # bert-as-service's


class Encoder:
    """Sentence vectors of one model.

    model_dir: a folder, a hub name, or None for the demo model. device: "auto", "cpu" or "cuda:N".
    dtype: "auto", "float32", "float16" or "bfloat16", of the forward pass; vectors are always float32.
    max_seq_len: longest sequence in tokens, special ones included; None: the model's own.
    pooling_strategy, pooling_layer: as the server's settings of these names.
    Raises ModelError, in one line, for anything that keeps the model from being served as asked.

    >>> Encoder().encode(["First do it", "then do it right"]).shape
    (2, 384)
    """

    def __init__(
        self,
        model_dir: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_seq_len: int | None = None,
        max_batch_tokens: int = 16384,
        pooling_strategy: str = "auto",
        pooling_layer: Sequence[int] | None = None,
    ) -> None:
        folder = resolve_model_dir(None if model_dir is None else str(model_dir))
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.max_seq_len = check_max_seq_len(folder, max_seq_len)
        self.micro_batch_tokens = (
            min(max_batch_tokens, _CPU_MICRO_BATCH_TOKENS) if self.device.type == "cpu" else max_batch_tokens
        )

        own = read_sentence_transformers(folder)
        transformer_dir = own.transformer_dir if own else folder
        if own and pooling_strategy == "auto" and pooling_layer is None:
            self._poolings, self._normalize = own.pooling_modes, own.normalize
            layers: Sequence[int] = (-1,)
        else:
            self._poolings = ("REDUCE_MEAN" if pooling_strategy == "auto" else pooling_strategy,)
            self._normalize = False
            layers = pooling_layer or _DEFAULT_LAYERS
        num_layers = num_hidden_layers(transformer_dir)
        self._layers = [_layer_index(layer, num_layers) for layer in layers]

        self._tokenizer = Tokenizer(
            transformer_dir,
            max_seq_len=self.max_seq_len,
            do_lower_case=own.do_lower_case if own else False,
            prompt=own.default_prompt if own else "",
        )
        # On a CPU, bfloat16 is for the matrix products alone: with float32 between them each row keeps
        # cosine >= 0.9999 with the reference (0.99994 at worst; 0.99988 all in bfloat16), for 7 % of the speed.
        self._autocast = self.device.type == "cpu" and self.dtype is torch.bfloat16
        self._model = load_model(
            transformer_dir,
            device=self.device,
            dtype=torch.float32 if self._autocast else self.dtype,
            num_layers=max(self._layers) + 1,
        )
        self.dimension = self.encode(["a"]).shape[1]

    def encode(self, texts: Sequence[Text]) -> Rows:
        """Return the vectors of the texts, (B, D) float32, in the order of the texts.

        A text is a string, or a list of tokens that are looked up in the vocabulary as they are.
        """
        return self.forward(self.tokenize(texts))

    def tokenize(self, texts: Sequence[Text]) -> list[TokenizedText]:
        """Return the token ids of the texts; the first half of `encode`, for pipelines."""
        return self._tokenizer(texts)

    def tokens(self, tokenized: TokenizedText) -> list[str]:
        """Return the tokens that the model sees, special ones included."""
        return self._tokenizer.tokens(tokenized.ids)

    def forward(self, tokenized: Sequence[TokenizedText]) -> Rows:
        """Return the vectors of tokenized texts, (B, D) float32; the second half of `encode`."""
        plan = plan_micro_batches([len(t.ids) for t in tokenized], self.micro_batch_tokens)
        parts = [self._forward_micro_batch([tokenized[i].ids for i in indices]) for indices in plan]
        rows = np.empty((len(tokenized), parts[0].shape[1]), dtype=np.float32)
        for indices, part in zip(plan, parts, strict=True):
            rows[indices] = part.cpu().numpy()
        return rows

    @torch.inference_mode()
    def _forward_micro_batch(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        input_ids, mask = pad(sequences, pad_id=self._tokenizer.pad_id, device=self.device)  # (B, T)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            output = self._model(
                input_ids=input_ids, attention_mask=mask, output_hidden_states=len(self._layers) > 1
            )
        if len(self._layers) == 1:  # it is the top layer that was loaded
            hidden = output.last_hidden_state  # (B, T, H)
        else:  # hidden_states[0] is the embedding
            hidden = torch.cat([output.hidden_states[layer + 1] for layer in self._layers], dim=-1)
        return pool(hidden, mask, self._poolings, normalize=self._normalize)


def _layer_index(layer: int, num_layers: int) -> int:
    """Return the layer counted from 0, the lowest; negative numbers count from the top."""
    if not -num_layers <= layer < num_layers:
        raise ModelError(f"pooling_layer must be in {-num_layers}..{num_layers - 1} for this model, got {layer}")
    return layer % num_layers
