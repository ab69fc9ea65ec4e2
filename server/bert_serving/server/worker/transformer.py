"""Runs the model on its device: turns sequences of token ids into hidden states.

A forward pass is packed (no padding) or padded, as execution.py chose at load time. In both cases the hidden
states come back without padding: (T, H), the sequences end to end.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import attention
from .cuda_graphs import CudaGraphs, NotRecorded, RowArrays
from .packing import groups_of
from .pooling_plan import Head
from .sequences import TokenSequence
from .splade import SpladeHead
from .transfers import Array, to_device


@dataclass(frozen=True, slots=True)
class InputFormat:
    """How sequences become a model's inputs.

    first_position: the position id of a sequence's first token. pad_id: the token id of padding.
    hide_specials: let no token attend to special tokens.
    """

    device: torch.device
    first_position: int
    pad_id: int
    hide_specials: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """How forward passes run.

    padded_because: why they are padded; None: they are packed. autocast: the dtype that torch's autocast computes
    in; None: no autocast. has_varlen: one kernel call computes the attention of all sequences of a packed row.
    """

    padded_because: str | None = None
    autocast: torch.dtype | None = None
    has_varlen: bool = False


@dataclass(frozen=True, slots=True)
class Heads:
    """What a model computes from its last layer, in addition to hidden states.

    by_strategy: functions from first tokens (B, H) to rows (B, D) float32, by pooling strategy. labels: the labels
    of a classification head. sparse: the masked-language-model head, for SPLADE.
    """

    by_strategy: Mapping[str, Head] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    sparse: SpladeHead | None = None

    def widths(self, hidden_size: int) -> dict[str, int]:
        """Return the number of components that each strategy gives, for hidden states of this size."""
        num_labels = len(self.labels)
        known = {"CLS_POOLED": hidden_size, "REGRESSION": 1, "CLASSIFICATION": num_labels, "LOGITS": num_labels}
        found = {name: known[name] for name in self.by_strategy}
        return found if self.sparse is None else found | {"SPLADE": self.sparse.num_terms}


class PackedForward(Protocol):
    """A forward pass over a packed row that takes the place of the model's own."""

    def can_compute(self, num_tokens: int, layers: frozenset[int]) -> bool:
        """Whether it computes these layers for a row of this length."""

    def __call__(self, ids: Tensor, positions: Tensor, ends: Tensor, types: Tensor) -> dict[int, Tensor]:
        """Return the hidden states of its layers, (T, H) each.

        ids, positions, types: (1, T) int64. ends: where each sequence ends in the row, (B,) int64.
        """


class Transformer:
    """A Transformers model, and how its forward passes run.

    compiled: the compiled forward pass, used for packed rows that it can compute. graphs: CUDA graphs, likewise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: InputFormat,
        execution: Execution,
        heads: Heads = Heads(),
        compiled: PackedForward | None = None,
        graphs: CudaGraphs | None = None,
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._graphs = graphs
        self._inputs = inputs
        self._execution = execution
        self._takes_types = takes_types(model)
        self._all_heads = heads
        self.heads = heads.by_strategy
        self.sparse_head = heads.sparse
        self.num_layers: int = model.config.num_hidden_layers
        #: Number of padding tokens computed so far.
        self.num_padding = 0

    @property
    def device(self) -> torch.device:
        """The device of the forward passes."""
        return self._inputs.device

    @property
    def padded_because(self) -> str | None:
        """Why the forward pass is padded, or None if it is packed."""
        return self._execution.padded_because

    @property
    def is_compiled(self) -> bool:
        """Whether the forward pass is compiled, at least for the layers that are pooled by default."""
        return self._compiled is not None

    @property
    def has_graphs(self) -> bool:
        """Whether packed rows are computed by CUDA graphs, if they are not too long."""
        return self._graphs is not None

    def runs_compiled(self, num_tokens: int, layers: frozenset[int]) -> bool:
        """Whether the pass over a row of this length, for these layers, is compiled."""
        return self._compiled is not None and self._compiled.can_compute(num_tokens, layers)

    def with_compiled(self, compiled: PackedForward) -> Transformer:
        """Return a transformer of the same model that uses the compiled forward pass."""
        return Transformer(self._model, self._inputs, self._execution, self._all_heads, compiled)

    def with_graphs(self, layers: frozenset[int], *, longest: int, max_tokens: int) -> Transformer:
        """Return a transformer of the same model that computes these layers by CUDA graphs.

        longest: the largest number of tokens in a sequence. max_tokens: the largest number in a row. Raises
        NotRecorded if this is not possible.
        """
        if not self._execution.has_varlen or self._inputs.hide_specials:
            raise NotRecorded("only packed passes in half precision are recorded, and not with -mask_cls_sep")
        graphs = CudaGraphs(
            lambda inputs, row: self._run_row(inputs, row, layers),
            self.device,
            layers,
            longest=longest,
            max_tokens=max_tokens,
            takes_types=self._takes_types,
        )
        return Transformer(self._model, self._inputs, self._execution, self._all_heads, graphs=graphs)

    @property
    def num_ids(self) -> int | None:
        """The number of token ids that have an embedding; None if a user's own model does not provide it."""
        try:
            return int(self._model.get_input_embeddings().weight.shape[0])
        except NotImplementedError:
            return None

    @torch.inference_mode()
    def hidden(self, sequences: Sequence[TokenSequence], layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the hidden states of the layers, counted from 0: (T, H) each.

        This is fastest if the sequences are sorted by length.
        """
        return self.hidden_with(sequences, layers, [])[0]

    @torch.inference_mode()
    def hidden_with(
        self, sequences: Sequence[TokenSequence], layers: Iterable[int], arrays: Sequence[Array]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Do the same as `hidden`, and also return the arrays on the device.

        The arrays travel there together with the inputs of the model.
        """
        run = self._packed if self.padded_because is None else self._padded
        return run(sequences, frozenset(layers), arrays)

    def _packed(
        self, sequences: Sequence[TokenSequence], layers: frozenset[int], arrays: Sequence[Array]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        lengths = [len(s.ids) for s in sequences]
        if self.runs_compiled(sum(lengths), layers):
            hidden = self._run_compiled(sequences, lengths)
            return hidden, to_device(arrays, self.device)
        groups = groups_of(lengths)
        ids, positions, types = self._row(sequences, lengths)
        if self._graphs is not None and (size := self._graphs.size_for(sum(lengths), len(lengths), layers)):
            host = RowArrays(ids, positions, types, attention.cumulative_lengths(groups))
            return self._graphs.run(size, host, arrays)
        inputs = {"input_ids": ids, "position_ids": positions}
        if self._takes_types and types.any():
            inputs["token_type_ids"] = types
        row = {}  # what attention must know
        if self._inputs.hide_specials:
            row["visible"] = np.concatenate([_visible(s) for s in sequences])
        elif self._execution.has_varlen:
            row["cu_seqlens"] = attention.cumulative_lengths(groups)
        moved = iter(to_device([*inputs.values(), *row.values(), *arrays], self.device))
        on_device = {name: next(moved) for name in inputs}
        packed_row = attention.PackedRow(groups, **{name: next(moved) for name in row})
        return self._run_row(on_device, packed_row, layers), list(moved)

    def _run_row(
        self, inputs: dict[str, Tensor], row: attention.PackedRow, layers: frozenset[int]
    ) -> dict[int, Tensor]:
        """Return the hidden states of a packed row, (T, H) for each layer. inputs: (1, T) each."""
        with attention.packed_row(row):
            hidden = self._call_model(inputs, layers)
        return {layer: states[0] for layer, states in hidden.items()}

    def _run_compiled(self, sequences: Sequence[TokenSequence], lengths: Sequence[int]) -> dict[int, Tensor]:
        assert self._compiled is not None
        ids, positions, types = self._row(sequences, lengths)
        return self._compiled(*to_device([ids, positions, np.cumsum(lengths), types], self.device))

    def _row(self, sequences: Sequence[TokenSequence], lengths: Sequence[int]) -> tuple[Array, Array, Array]:
        """Return ids, positions and types of a packed row, (1, T) int64 each."""
        ids = _end_to_end([s.ids for s in sequences])
        types = np.zeros_like(ids)
        if any(s.type_ids for s in sequences):
            types = _end_to_end([s.type_ids or [0] * len(s.ids) for s in sequences])
        stops = np.cumsum(lengths)
        positions = np.arange(stops[-1]) - np.repeat(stops - lengths, lengths)  # counted from 0 in each sequence
        return ids, positions[None] + self._inputs.first_position, types

    def _padded(
        self, sequences: Sequence[TokenSequence], layers: frozenset[int], arrays: Sequence[Array]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        input_ids, mask = attention.pad([s.ids for s in sequences], pad_id=self._inputs.pad_id)
        real = np.flatnonzero(mask)  # (number of real tokens,)
        self.num_padding += mask.size - len(real)
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if self._takes_types and any(s.type_ids for s in sequences):
            types = [s.type_ids or [0] * len(s.ids) for s in sequences]
            inputs["token_type_ids"] = attention.pad(types, pad_id=0)[0]
        if self._inputs.hide_specials:
            inputs["attention_mask"] = attention.pad([_visible(s).tolist() for s in sequences], pad_id=0)[0]
        moved = iter(to_device([*inputs.values(), real, *arrays], self.device))
        hidden = self._call_model({name: next(moved) for name in inputs}, layers)
        rows = next(moved)
        return {layer: states.flatten(0, 1)[rows] for layer, states in hidden.items()}, list(moved)

    def _call_model(self, inputs: dict[str, Tensor], layers: frozenset[int]) -> dict[int, Tensor]:
        """Return the layers' hidden states, (B, T, H) each."""
        top = self.num_layers - 1
        autocast = self._execution.autocast
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            output = self._model(**inputs, output_hidden_states=layers != {top})
        # hidden_states[0] is the output of the embeddings
        return {i: output.last_hidden_state if i == top else output.hidden_states[i + 1] for i in layers}


def _end_to_end(lists: Iterable[list[int]]) -> Array:
    """Return the numbers of the lists, end to end, as (1, T) int64."""
    return np.fromiter(chain.from_iterable(lists), np.int64)[None]


def _visible(sequence: TokenSequence) -> Array:
    """Return (T,) bool, True for tokens that are not special. If all tokens are special, all are True."""
    visible = np.ones(len(sequence.ids), np.bool_)
    if len(sequence.specials) < len(sequence.ids):
        visible[list(sequence.specials)] = False
    return visible


def takes_types(model: PreTrainedModel) -> bool:
    """Return whether token type ids make a difference to a model."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and getattr(model.config, "type_vocab_size", 0) > 1
