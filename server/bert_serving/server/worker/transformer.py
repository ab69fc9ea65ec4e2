"""The model on its device: sequences of token ids in, hidden states out.

The forward pass is packed, without padding, if at load time that gives this model's own float32 vectors; else
it is padded. Either way hidden states come out without padding: (T, H), the sequences end to end.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.errors import ModelError, one_line
from . import attention
from .checkpoint import lower_precision
from .linear import prepack
from .packing import groups_of
from .pooling import mean, whole_segments
from .sequences import TokenSequence
from .splade import SpladeHead

log = logging.getLogger(__name__)

_MAX_DEVIATION = 1e-4  # of packed float32 from padded float32, relative to the largest value; rounding is 1e-6
_MIN_COSINE = 0.99  # of the working dtype with float32; bfloat16 and float16 have 0.9999 and better


class Transformer:
    """A Transformers model in float32, until `choose_execution` has chosen how it runs.

    first_position: the position id of a sequence's first token. pad_id: what padding is filled with.
    hide_specials: no token sees the special ones.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        first_position: int,
        pad_id: int,
        hide_specials: bool = False,
    ) -> None:
        self._model = model
        self.device = device
        self._first_position = first_position
        self._pad_id = pad_id
        self._hide_specials = hide_specials
        self._takes_types = _takes_types(model)
        self._autocast: torch.dtype | None = None
        self._has_varlen = False
        #: What makes a row of a first token, by strategy.
        self.heads: dict[str, Callable[[Tensor], Tensor]] = {}
        #: What makes weights of terms of the last layer's tokens, see SpladeHead.
        self.terms: SpladeHead | None = None
        #: Tokens computed for nothing so far.
        self.num_padding = 0
        self.num_layers: int = model.config.num_hidden_layers
        self.hidden_size = 0
        #: Why the forward pass is padded, or None if it is packed.
        self.padded_because: str | None = "not settled yet"

    @torch.inference_mode()
    def hidden(self, sequences: Sequence[TokenSequence], layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the hidden states of the layers, counted from 0: (T, H) each.

        Fastest for sequences that are sorted by length.
        """
        run = self._packed if self.padded_because is None else self._padded
        return run(sequences, frozenset(layers))

    @property
    def num_ids(self) -> int | None:
        """How many token ids have an embedding; None where a model of a user's own does not say."""
        try:
            return int(self._model.get_input_embeddings().weight.shape[0])
        except NotImplementedError:
            return None

    @property
    def has_pooler(self) -> bool:
        return getattr(self._model, "pooler", None) is not None

    @torch.inference_mode()
    def pooled(self, first: Tensor) -> Tensor:
        """Return what the model's own pooler, a dense layer with tanh, makes of first tokens (B, H)."""
        model = self._model
        first = first.to(model.dtype)
        if hasattr(model, "pooler_activation"):  # ALBERT
            pooled: Tensor = model.pooler_activation(model.pooler(first))
        else:
            pooled = model.pooler(first[:, None])
        return pooled.float()

    # -- the two ways ----------------------------------------------------------------------------------

    def _packed(self, sequences: Sequence[TokenSequence], layers: frozenset[int]) -> dict[int, Tensor]:
        groups = groups_of([len(s.ids) for s in sequences])
        positions = torch.cat([torch.arange(g.length).repeat(g.count) for g in groups]) + self._first_position
        inputs = {"input_ids": _row([s.ids for s in sequences]), "position_ids": positions[None]}
        if any(s.type_ids for s in sequences) and self._takes_types:
            inputs["token_type_ids"] = _row([s.type_ids or [0] * len(s.ids) for s in sequences])
        visible = None
        if self._hide_specials:
            visible = torch.cat([_visible(s) for s in sequences]).to(self.device)
        ends = attention.cumulative_lengths(groups, self.device) if self._has_varlen and visible is None else None
        with attention.packed_row(attention.PackedRow(groups, visible, ends)):
            return {layer: hidden[0] for layer, hidden in self._run(inputs, layers).items()}

    def _padded(self, sequences: Sequence[TokenSequence], layers: frozenset[int]) -> dict[int, Tensor]:
        input_ids, mask = attention.pad([s.ids for s in sequences], pad_id=self._pad_id, device=self.device)
        real = mask.bool()  # (B, T)
        self.num_padding += mask.numel() - sum(len(s.ids) for s in sequences)
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if any(s.type_ids for s in sequences) and self._takes_types:
            types = [s.type_ids or [0] * len(s.ids) for s in sequences]
            inputs["token_type_ids"] = attention.pad(types, pad_id=0, device=self.device)[0]
        if self._hide_specials:
            seen = attention.pad([_visible(s).tolist() for s in sequences], pad_id=0, device=self.device)[0]
            inputs["attention_mask"] = seen.long()
        return {layer: hidden[real] for layer, hidden in self._run(inputs, layers).items()}

    def _run(self, inputs: dict[str, Tensor], layers: frozenset[int]) -> dict[int, Tensor]:
        """Return the layers' hidden states, (B, T, H) each."""
        top = self.num_layers - 1
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            output = self._model(**inputs, output_hidden_states=layers != {top})
        # hidden_states[0] is the embedding
        return {i: output.last_hidden_state if i == top else output.hidden_states[i + 1] for i in layers}

    # -- at load time ----------------------------------------------------------------------------------

    def choose_execution(self, probes: Sequence[TokenSequence], dtype: torch.dtype) -> float:
        """Choose packed or padded, lower the precision, and return the parity with the float32 reference.

        Parity: the smallest cosine between a probe's mean vector and that of the padded float32 model with
        eager attention. Raises ModelError if it is too small.
        """
        probes = sorted(probes, key=lambda s: len(s.ids))
        self._model.set_attn_implementation(attention.REFERENCE)
        reference = self._vectors(probes)
        self.hidden_size = reference.shape[1]
        self.padded_because = self._why_not_packed(probes, reference)
        if self.padded_because is not None:
            log.warning("this model runs padded, which is slower: %s", self.padded_because)
            # Not every model of a user's own has attention that goes through Transformers' registry.
            has_sdpa = getattr(self._model, "_supports_sdpa", False)
            self._model.set_attn_implementation(attention.PADDED if has_sdpa else attention.REFERENCE)
        self._lower(dtype, probes)
        self._has_varlen = self._can_varlen(dtype, probes)
        parity = float(torch.nn.functional.cosine_similarity(self._vectors(probes), reference).min())
        if not parity >= _MIN_COSINE:  # NaN is no parity either
            raise ModelError(f"{dtype} is too coarse for this model (cosine {parity:.4f}): use -dtype float32")
        return parity

    def _vectors(self, probes: Sequence[TokenSequence]) -> Tensor:
        top = self.num_layers - 1
        hidden = self.hidden(probes, [top])[top].float()
        return mean(hidden, whole_segments([len(s.ids) for s in probes], self.device))

    def _why_not_packed(self, probes: Sequence[TokenSequence], reference: Tensor) -> str | None:
        attention.register()
        try:
            self._model.set_attn_implementation(attention.PACKED)
            self.padded_because = None
            packed = self._vectors(probes)
        except Exception as exc:  # whatever a model's code makes of a packed row, it is a reason
            return f"a packed row is not accepted ({one_line(exc)[:100]})"
        deviation = float((packed - reference).abs().max() / reference.abs().max())
        if deviation <= _MAX_DEVIATION:
            return None
        return f"packed vectors differ from padded ones by {deviation:.1e} (positions or attention of its own)"

    def _can_varlen(self, dtype: torch.dtype, probes: Sequence[TokenSequence]) -> bool:
        """Return whether one kernel can attend within all sequences: not every GPU and head width has it."""
        if self.device.type != "cuda" or dtype is torch.float32 or self.padded_because is not None:
            return False
        self._has_varlen = True
        try:
            self._vectors(probes)
        except RuntimeError as exc:
            log.warning("attention goes length by length, which is slower: %s", one_line(exc)[:200])
            return False
        return True

    def _lower(self, dtype: torch.dtype, probes: Sequence[TokenSequence]) -> None:
        """Let the model compute in the dtype."""
        on_cpu = self.device.type == "cpu"
        is_packed = self.padded_because is None
        if on_cpu and dtype is not torch.float16 and (is_packed or dtype is torch.float32):
            prepacking = prepack(self._model, dtype)
            if prepacking is not None:
                try:
                    self._vectors(probes)
                    return
                except Exception as exc:  # a model that does more with its layers than call them
                    log.debug("linear layers are not prepacked: %s", one_line(exc))
                    prepacking.undo()
        if dtype is torch.float32:
            return
        if on_cpu and not is_packed:
            # Attention of a model's own may mix dtypes in ways that only autocast knows how to settle.
            self._autocast = dtype
        else:
            lower_precision(self._model, dtype, self.device)


def _row(lists: Iterable[list[int]]) -> Tensor:
    """Return the numbers of the lists, end to end, as (1, T) int64."""
    return torch.tensor([i for numbers in lists for i in numbers])[None]


def _visible(sequence: TokenSequence) -> Tensor:
    """Return (T,) bool: which tokens are not special. Where all are, none is hidden."""
    visible = torch.ones(len(sequence.ids), dtype=torch.bool)
    if len(sequence.specials) < len(sequence.ids):
        visible[list(sequence.specials)] = False
    return visible


def _takes_types(model: PreTrainedModel) -> bool:
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and getattr(model.config, "type_vocab_size", 0) > 1
