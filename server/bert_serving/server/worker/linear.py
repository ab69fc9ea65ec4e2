"""Linear layers whose weights are stored in the memory layout of the CPU's matrix product.

oneDNN reorders a plain weight on every call, and PyTorch computes float32 products with another library, which is
slow on some processors. Reordering the weights once, at load time, avoids both, and lets the same operator
compute GELU too. PyTorch's own compiler emits these operators; if a PyTorch build lacks them, the layers are not
replaced.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from ..model.errors import one_line

log = logging.getLogger(__name__)

_EXPECTED_TOKENS = 1024  # oneDNN chooses the layout for this number of rows; other numbers of rows work too


class PrepackedLinear(nn.Module):
    """A linear layer for inference on a CPU, computed in `dtype`, and followed by (exact) GELU if `gelu`.

    Accepts input of any float type.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, gelu: bool = False) -> None:
        super().__init__()
        self._dtype = dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().to(dtype).contiguous(), _EXPECTED_TOKENS
        )
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self._post_op = ("gelu", "none") if gelu else ("none", "")  # "none": no tanh approximation

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) in the layer's dtype, for x (..., in_features)."""
        name, algorithm = self._post_op
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self._weight, self._bias, name, [], algorithm
        )
        return y


class Prepacking:
    """Replaces the linear layers of a model by prepacked ones; `undo` restores the original ones."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._replaced: list[tuple[nn.Module, str, object]] = []
        for parent in list(model.modules()):
            gelu = _is_dense_and_gelu(parent)
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    self._replace(parent, name, PrepackedLinear(child, dtype, gelu=gelu))
            if gelu:
                self._replace(parent, "intermediate_act_fn", nn.Identity())

    def undo(self) -> None:
        """Put the original layers back."""
        for parent, name, original in self._replaced:
            setattr(parent, name, original)

    def _replace(self, parent: nn.Module, name: str, by: nn.Module) -> None:
        self._replaced.append((parent, name, getattr(parent, name)))
        setattr(parent, name, by)


def prepack(model: nn.Module, dtype: torch.dtype) -> Prepacking | None:
    """Replace the model's linear layers by prepacked ones; return None if PyTorch does not support them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    try:
        probe = PrepackedLinear(nn.Linear(8, 8), dtype)
        probe(torch.zeros(2, 8))
    except Exception as exc:  # the operators are internal to PyTorch: a build without them may fail in any way
        log.debug("linear layers are not prepacked: %s", one_line(exc))
        return None
    return Prepacking(model, dtype)


def _is_dense_and_gelu(module: nn.Module) -> bool:
    """Return whether a module is the first half of a feed-forward block, judged by the layers' names and types."""
    children: dict[str, nn.Module] = dict(module.named_children())
    return (
        children.keys() == {"dense", "intermediate_act_fn"}
        and type(children["dense"]) is nn.Linear
        and type(children["intermediate_act_fn"]) is GELUActivation
        and getattr(children["intermediate_act_fn"], "act", None) is nn.functional.gelu
    )
