"""What is compiled: the packed forward pass of a model, from token ids to the hidden states of some layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from . import operators
from .forward import can_load_blob

_NAME = "packed_native"
_EXAMPLE = (30,) * 8  # lengths of the sequences that the graph is traced with
_ends: ContextVar[Tensor] = ContextVar("ends of the sequences of the row that is traced")

# Options of PyTorch's compiler. freezing: weights are constants, in the layout of the processor's product. The
# products of one input (query, key and value) become one product. dynamic_threads: the number of threads is not
# fixed when the graph is compiled. If possible, weights are a file of their own (see forward.py). PyTorch could
# also find out which of its products is fastest, but beside a server that computes it may choose a slow one.
_OPTIONS: dict[str, Any] = {
    "freezing": True,
    "cpp.enable_concat_linear": True,
    "cpp.dynamic_threads": True,
}
if can_load_blob():
    _OPTIONS["aot_inductor.package_constants_on_disk_format"] = "binary_blob"


class PackedGraph(nn.Module):
    """The packed forward pass of a model that runs on a CPU.

    model: in float32; its linear layers compute in the dtype afterwards. layers: whose hidden states are returned,
    counted from 0. takes_types: whether token type ids are an input.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], *, takes_types: bool) -> None:
        super().__init__()
        self._model = model
        self._layers = tuple(layers)
        self._takes_types = takes_types
        self._top = model.config.num_hidden_layers - 1
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
        operators.define()
        model.set_attn_implementation(_NAME)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, ends: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the hidden states of the layers, (T, H) each.

        input_ids, position_ids, token_type_ids: (1, T) int64. ends: where each sequence ends, (B,) int64.
        """
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        if self._takes_types:
            inputs["token_type_ids"] = token_type_ids
        token = _ends.set(ends)
        try:
            output = self._model(**inputs, output_hidden_states=self._layers != (self._top,))
        finally:
            _ends.reset(token)
        return tuple(
            (output.last_hidden_state if i == self._top else output.hidden_states[i + 1])[0] for i in self._layers
        )


def traced(graph: nn.Module, *, max_tokens: int) -> ExportedProgram:
    """Trace a PackedGraph, or the module of a traced one, for rows of 2 to max_tokens tokens.

    May raise any exception, as a model's code may.
    """
    num_tokens = sum(_EXAMPLE)
    row = torch.ones(1, num_tokens, dtype=torch.int64)
    example = (row, row * 2, torch.tensor(_EXAMPLE).cumsum(0), row * 0)
    tokens = {1: Dim("tokens", min=2, max=max_tokens)}
    with torch.no_grad():
        return torch.export.export(graph, example, dynamic_shapes=(tokens, tokens, {0: Dim.DYNAMIC}, tokens))


def compile_program(program: ExportedProgram, folder: Path) -> Path:
    """Compile a graph; return the package, which is written to the folder. May raise any exception."""
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / "graph.pt2"), inductor_configs=_OPTIONS
        )
    return Path(package)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Take the place of attention.packed_attention while the model is traced."""
    return operators.attention(query, key, value, _ends.get(), scaling, sliding_window), None
