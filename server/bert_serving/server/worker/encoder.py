"""Texts in, vectors out: one model on one device, with no knowledge of sockets or jobs.

    tokenize -> plan micro-batches -> one forward pass for each -> pool -> rows in the caller's order

The forward pass is packed, without padding, if at load time that gives this model's own float32 vectors;
else it is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bert_serving.protocol import Rows, Text

from ..model_files import (
    ModelError,
    check_max_seq_len,
    first_position,
    one_line,
    read_sentence_transformers,
    refuse_code,
    resolve_model_dir,
    resolve_tuned_model_dir,
)
from . import attention
from .checkpoint import layers_to_load, load_model, lower_precision, num_hidden_layers
from .dense import load_head
from .device import pick_device, pick_dtype
from .model_module import import_model_module
from .packing import groups_of, plan_micro_batches
from .pooling import pool
from .tokenizer import TokenizedText, Tokenizer

log = logging.getLogger(__name__)

# Micro-batches of this size keep a CPU's activations in its caches (1,000 to 2,000 measured best);
# a GPU wants as many tokens as there are.
_CPU_MICRO_BATCH_TOKENS = 2048

_DEFAULT_LAYERS = (-2,)  # bert-as-service's

# Short and long, of equal and of different length, and longer than the window of local attention.
_PROBES = ["a", "Hello world!", "one two three", "four five six", "The quick brown fox jumps. " * 4, "word " * 600]
_MAX_DEVIATION = 1e-4  # of packed float32 from padded float32, relative to the largest value; rounding is 1e-6
_MIN_COSINE = 0.99  # of the working dtype with float32; bfloat16 and float16 have 0.9999 and better


class EncodingError(Exception):
    """The model fails on a text."""


class Encoder:
    """Sentence vectors of one model.

    model_dir: a folder, a hub name, or None for the demo model. revision: commit, tag or branch of a hub name.
    tuned_model_dir: a folder whose weights are taken instead of the model's own.
    model_module: a module, or its .py file, that registers an architecture with Transformers.
    trust_remote_code: run the code that comes with the model. device: "auto", "cpu" or "cuda:N".
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
        revision: str | None = None,
        tuned_model_dir: str | Path | None = None,
        model_module: str | Path | None = None,
        trust_remote_code: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        max_seq_len: int | None = None,
        max_batch_tokens: int = 16384,
        pooling_strategy: str = "auto",
        pooling_layer: Sequence[int] | None = None,
    ) -> None:
        tuned_dir = resolve_tuned_model_dir(None if tuned_model_dir is None else str(tuned_model_dir))
        folder = resolve_model_dir(
            None if model_dir is None else str(model_dir),
            revision=revision,
            trust_remote_code=trust_remote_code,
            needs_weights=tuned_dir is None,
        )
        if model_module is not None:
            import_model_module(str(model_module))
        elif not trust_remote_code:
            refuse_code(folder)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.max_seq_len = check_max_seq_len(folder, max_seq_len)
        self.micro_batch_tokens = (
            min(max_batch_tokens, _CPU_MICRO_BATCH_TOKENS) if self.device.type == "cpu" else max_batch_tokens
        )

        own = read_sentence_transformers(folder)
        if own and not own.include_prompt:
            raise ModelError(f"pooling that leaves the prompt out is not supported: {folder}")
        transformer_dir = own.transformer_dir if own else folder
        if own and pooling_strategy == "auto" and pooling_layer is None:
            self._poolings = own.pooling_modes
            self._head = load_head(own.head, self.device)
            layers: Sequence[int] = (-1,)
        else:
            self._poolings = ("REDUCE_MEAN" if pooling_strategy == "auto" else pooling_strategy,)
            self._head = load_head((), self.device)
            layers = pooling_layer or _DEFAULT_LAYERS
        num_layers = num_hidden_layers(transformer_dir, trust_remote_code=trust_remote_code)
        self._layers = [_layer_index(layer, num_layers) for layer in layers]
        self._first_position = first_position(transformer_dir)
        self._tokenizer = Tokenizer(
            transformer_dir,
            max_seq_len=self.max_seq_len,
            do_lower_case=own.do_lower_case if own else False,
            prompt=own.default_prompt if own else "",
        )
        self._num_layers = layers_to_load(
            transformer_dir, highest=max(self._layers), trust_remote_code=trust_remote_code
        )
        self._model = load_model(
            transformer_dir,
            weights_dir=tuned_dir,
            device=self.device,
            num_layers=self._num_layers,
            trust_remote_code=trust_remote_code,
        )
        self._autocast = False
        #: Why the forward pass is padded, or None if it is packed.
        self.padded_because: str | None = None
        #: Smallest cosine of a probe's vector with that of the padded float32 model.
        self.parity = self._settle_forward()
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
        """Return the vectors of tokenized texts, (B, D) float32; the second half of `encode`.

        Raises EncodingError rather than return a value that is not finite.
        """
        run = self._forward_packed if self.padded_because is None else self._forward_padded
        plan = plan_micro_batches(
            [len(t.ids) for t in tokenized], self.micro_batch_tokens, padded=self.padded_because is not None
        )
        parts = [run([tokenized[i].ids for i in indices]) for indices in plan]
        rows = np.empty((len(tokenized), parts[0].shape[1]), dtype=np.float32)
        for indices, part in zip(plan, parts, strict=True):
            rows[indices] = part.cpu().numpy()
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise EncodingError(f"the model gives no finite vector in {self.dtype} for texts[{bad}]")
        return rows

    @torch.inference_mode()
    def _forward_packed(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the pooled rows of sequences that are sorted by length."""
        groups = groups_of([len(s) for s in sequences])
        input_ids = torch.tensor([i for s in sequences for i in s])  # (T,)
        position_ids = torch.cat([torch.arange(g.length).repeat(g.count) for g in groups]) + self._first_position
        with attention.packed_row(groups):
            hidden = self._hidden(
                input_ids=input_ids[None].to(self.device, non_blocking=True),
                position_ids=position_ids[None].to(self.device, non_blocking=True),
            )[0]  # (T, H)
        rows = []
        for group in groups:
            tokens = hidden[group.start : group.stop].view(group.count, group.length, -1)  # (B, T, H)
            mask = torch.ones(tokens.shape[:2], device=self.device)
            rows.append(pool(tokens, mask, self._poolings, normalize=False))
        return self._apply_head(torch.cat(rows))

    @torch.inference_mode()
    def _forward_padded(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the pooled rows of sequences of any lengths."""
        input_ids, mask = attention.pad(sequences, pad_id=self._tokenizer.pad_id, device=self.device)  # (B, T)
        hidden = self._hidden(input_ids=input_ids, attention_mask=mask)  # (B, T, H)
        return self._apply_head(pool(hidden, mask, self._poolings, normalize=False))

    def _apply_head(self, rows: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self._head(rows)
        return mapped

    def _hidden(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the chosen layers' hidden states side by side, (B, T, H)."""
        is_top = self._layers == [self._num_layers - 1]
        with torch.autocast(self.device.type, self.dtype, enabled=self._autocast):
            output = self._model(**inputs, output_hidden_states=not is_top)
        if is_top:
            top: torch.Tensor = output.last_hidden_state
            return top
        # hidden_states[0] is the embedding
        return torch.cat([output.hidden_states[layer + 1] for layer in self._layers], dim=-1)

    # -- at load time ----------------------------------------------------------------------------------

    def _settle_forward(self) -> float:
        """Choose packed or padded, lower the precision, and return the parity with the float32 reference."""
        sequences = sorted((t.ids for t in self.tokenize(_PROBES)), key=len)
        self._model.set_attn_implementation(attention.REFERENCE)
        reference = self._forward_padded(sequences)
        self.padded_because = self._why_not_packed(sequences, reference)
        if self.padded_because is not None:
            log.warning("this model runs padded, which is slower: %s", self.padded_because)
            # Not every model of a user's own has attention that goes through Transformers' registry.
            has_sdpa = getattr(self._model, "_supports_sdpa", False)
            self._model.set_attn_implementation(attention.PADDED if has_sdpa else attention.REFERENCE)
        if self.dtype is torch.float32:
            return self._parity(sequences, reference)
        # Attention of a model's own may mix dtypes in ways that only autocast knows how to settle.
        self._autocast = self.padded_because is not None and self.device.type == "cpu"
        if not self._autocast:
            lower_precision(self._model, self.dtype, self.device)
        parity = self._parity(sequences, reference)
        if not parity >= _MIN_COSINE:  # NaN is no parity either
            raise ModelError(
                f"{self.dtype} is too coarse for this model (cosine {parity:.4f}): use -dtype float32"
            )
        return parity

    def _why_not_packed(self, sequences: Sequence[Sequence[int]], reference: torch.Tensor) -> str | None:
        attention.register()
        try:
            self._model.set_attn_implementation(attention.PACKED)
            packed = self._forward_packed(sequences)
        except Exception as exc:  # whatever a model's code makes of a packed row, it is a reason
            return f"a packed row is not accepted ({one_line(exc)[:100]})"
        deviation = float((packed - reference).abs().max() / reference.abs().max())
        if deviation <= _MAX_DEVIATION:
            return None
        return f"packed vectors differ from padded ones by {deviation:.1e} (positions or attention of its own)"

    def _parity(self, sequences: Sequence[Sequence[int]], reference: torch.Tensor) -> float:
        run = self._forward_packed if self.padded_because is None else self._forward_padded
        return float(torch.nn.functional.cosine_similarity(run(sequences), reference).min())


def _layer_index(layer: int, num_layers: int) -> int:
    """Return the layer counted from 0, the lowest; negative numbers count from the top."""
    if not -num_layers <= layer < num_layers:
        raise ModelError(f"pooling_layer must be in {-num_layers}..{num_layers - 1} for this model, got {layer}")
    return layer % num_layers
