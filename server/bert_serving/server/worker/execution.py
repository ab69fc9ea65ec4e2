"""Chooses, at load time, how a model runs: packed or padded, in which dtype, with which kernels.

The reference is the model as Transformers runs it: padded, in float32, with eager attention. Every choice is
tested on a few probe texts: either its vectors are compared with those of the reference, or the test is only that
a forward pass does not fail.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.errors import ModelError, one_line
from . import attention
from .linear import prepack
from .pooling import mean, whole_segments
from .sequences import TokenSequence
from .transformer import Execution, InputFormat, Transformer

log = logging.getLogger(__name__)

# Largest allowed deviation of packed vectors from padded ones, both in float32, relative to the largest value.
# Rounding alone gives 1e-6.
_MAX_DEVIATION = 1e-4
#: Smallest allowed cosine between vectors in the chosen dtype and in float32.
MIN_COSINE = 0.99


def reference_execution(model: PreTrainedModel) -> Execution:
    """Let a model that is loaded in float32 run as the reference, until `choose_execution` changes it."""
    model.set_attn_implementation(attention.REFERENCE)
    return Execution(padded_because="the reference is padded")


def choose_execution(
    model: PreTrainedModel, inputs: InputFormat, probes: Sequence[TokenSequence], dtype: torch.dtype
) -> Execution:
    """Choose how a model that is loaded in float32 runs in the dtype, and change the model accordingly.

    Raises ModelError if the mean vectors in this dtype are too far from the reference. What is served is compared
    in parity.py.
    """
    trial = _Trial(model, inputs, sorted(probes, key=lambda s: len(s.ids)))
    reference = trial.vectors(reference_execution(model))
    execution = Execution(padded_because=_why_not_packed(trial, reference))
    if execution.padded_because is not None:
        log.warning("this model runs padded, which is slower: %s", execution.padded_because)
        # A user's own model may not take its attention function from Transformers' registry.
        has_sdpa = getattr(model, "_supports_sdpa", False)
        model.set_attn_implementation(attention.PADDED if has_sdpa else attention.REFERENCE)
    execution = _choose_precision(trial, execution, dtype)
    execution = replace(execution, has_varlen=_can_varlen(trial, execution, dtype))
    cosine = float(torch.nn.functional.cosine_similarity(trial.vectors(execution), reference).min())
    if not cosine >= MIN_COSINE:  # also true for NaN
        raise ModelError(f"{dtype} is too coarse for this model (cosine {cosine:.4f}): use -dtype float32")
    return execution


@dataclass(frozen=True, slots=True)
class _Trial:
    """A model and the probes that it is tried with."""

    model: PreTrainedModel
    inputs: InputFormat
    probes: Sequence[TokenSequence]

    def vectors(self, execution: Execution) -> Tensor:
        """Return the mean vector of each probe, (B, H) float32."""
        groups = [self.probes]
        if execution.padded_because is not None:  # the longest probe would pad all others to its length
            groups = [group for group in (self.probes[:-1], self.probes[-1:]) if group]
        return torch.cat([self._means(group, execution) for group in groups])

    def _means(self, probes: Sequence[TokenSequence], execution: Execution) -> Tensor:
        transformer = Transformer(self.model, self.inputs, execution)
        top = transformer.num_layers - 1
        hidden = transformer.hidden(probes, [top])[top].float()
        return mean(hidden, whole_segments([len(s.ids) for s in probes]).on(self.inputs.device))


def _why_not_packed(trial: _Trial, reference: Tensor) -> str | None:
    """Return why the model cannot run packed, or None if it can."""
    attention.register()
    try:
        trial.model.set_attn_implementation(attention.PACKED)
        packed = trial.vectors(Execution())
    except Exception as exc:  # a model's own code may fail in any way on a packed row
        return f"it does not accept a packed row ({one_line(exc)[:100]})"
    deviation = float((packed - reference).abs().max() / reference.abs().max())
    if deviation <= _MAX_DEVIATION:
        return None
    return (
        f"packed vectors differ from padded ones by {deviation:.1e} (the model has its own positions or attention)"
    )


def _choose_precision(trial: _Trial, execution: Execution, dtype: torch.dtype) -> Execution:
    """Make the model compute in the dtype; return the execution, with autocast if the model needs it."""
    model, device = trial.model, trial.inputs.device
    on_cpu, is_packed = device.type == "cpu", execution.padded_because is None
    if on_cpu and dtype is not torch.float16 and (is_packed or dtype is torch.float32):
        prepacking = prepack(model, dtype)
        if prepacking is not None:
            try:
                trial.vectors(execution)
                return execution
            except Exception as exc:  # the model's code may use attributes that prepacked layers lack
                log.debug("linear layers are not prepacked: %s", one_line(exc))
                prepacking.undo()
    if dtype is torch.float32:
        return execution
    if on_cpu and not is_packed:
        # A model's own attention may mix dtypes, which only autocast handles.
        return replace(execution, autocast=dtype)
    if on_cpu:
        compute_linear_in(dtype, model)
    else:
        model.to(dtype)
    return execution


def compute_linear_in(dtype: torch.dtype, model: PreTrainedModel) -> None:
    """Make the linear layers of a model on the CPU, and only these, compute in a dtype.

    With float32 between the matrix products, every row of the demo model has cosine >= 0.9999 with the reference
    (tests/model/test_parity.py); with everything in bfloat16, some rows of short texts have a lower cosine.
    """
    if dtype is torch.float32:
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
            module.register_forward_pre_hook(_cast_input)


def _cast_input(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    assert isinstance(module, torch.nn.Linear)
    return (args[0].to(module.weight.dtype), *args[1:])


def _can_varlen(trial: _Trial, execution: Execution, dtype: torch.dtype) -> bool:
    """Return whether one kernel call can compute the attention of all sequences.

    This depends on the GPU and on the width of the attention heads.
    """
    if trial.inputs.device.type != "cuda" or dtype is torch.float32 or execution.padded_because is not None:
        return False
    try:
        trial.vectors(replace(execution, has_varlen=True))
    except RuntimeError as exc:
        log.warning("attention runs once for each length, which is slower: %s", one_line(exc)[:200])
        return False
    return True
