"""A prototype for GPUs: packed rows of few tokens, filled up to a few fixed sizes.

With fixed sizes, a forward pass can be captured once as a CUDA graph and then replayed: the host starts one graph
instead of some hundred kernels. benchmarks/gpu.py measures whether this is worth a place in the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from bert_serving.server.worker import attention
from bert_serving.server.worker.packing import Group
from bert_serving.server.worker.sequences import TokenSequence
from bert_serving.server.worker.transfers import Array, packed, unpacked
from bert_serving.server.worker.transformer import Transformer
from torch import Tensor

SIZES = (16, 32, 64, 128, 256, 512)  # tokens of a row
MAX_SEQUENCES = 8  # of a row

#: Computes the last hidden states, (1, T, H), of ids, positions and types, (1, T) each, and of cumulative lengths.
Forward: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]"


class SmallRows:
    """Computes the small rows of a transformer with a function for each size; other rows as before.

    transformer: must run packed with one kernel call for all sequences. wrap: makes the function that runs the
    forward pass of one size, from the plain function and from examples of its arguments.
    """

    def __init__(
        self, transformer: Transformer, wrap: Callable[[Forward, Sequence[Tensor]], Forward], sizes: Sequence[int]
    ) -> None:
        assert transformer._execution.has_varlen, "the attention kernel is needed"
        self._transformer = transformer
        self._packed = transformer._packed
        self._wrap = wrap
        self._sizes = sizes
        self._forwards: dict[int, Forward] = {}
        transformer._packed = self._run  # type: ignore[method-assign]

    def _run(
        self, sequences: Sequence[TokenSequence], layers: frozenset[int], arrays: Sequence[Array]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        top, num_tokens = self._transformer.num_layers - 1, sum(len(s.ids) for s in sequences)
        if layers != {top} or len(sequences) > MAX_SEQUENCES or num_tokens > self._sizes[-1]:
            return self._packed(sequences, layers, arrays)
        size = next(size for size in self._sizes if size >= num_tokens)
        host = [*self._row(sequences, size), *arrays]
        moved = torch.from_numpy(packed(host)).pin_memory().to(self._transformer.device, non_blocking=True)
        tensors = unpacked(moved, [torch.from_numpy(array) for array in host])
        if size not in self._forwards:
            self._forwards[size] = self._wrap(plain_forward(self._transformer, size), tensors[:4])
        return {top: self._forwards[size](*tensors[:4])[0, :num_tokens]}, tensors[4:]

    def _row(self, sequences: Sequence[TokenSequence], size: int) -> list[Array]:
        """Return ids, positions and types, (1, size) each, and the cumulative lengths, (MAX_SEQUENCES + 2,).

        The tokens after the last sequence are one more sequence, and all further sequences are empty.
        """
        inputs = self._transformer._inputs
        ids, positions, types = np.full((3, 1, size), [[[inputs.pad_id]], [[inputs.first_position]], [[0]]])
        stops = np.full(MAX_SEQUENCES + 2, size, np.int32)
        stop = stops[0] = 0
        for i, sequence in enumerate(sequences):
            start, stop = stop, stop + len(sequence.ids)
            ids[0, start:stop] = sequence.ids
            positions[0, start:stop] += np.arange(stop - start)
            types[0, start:stop] = sequence.type_ids or 0
            stops[i + 1] = stop
        return [ids, positions, types, stops]


def plain_forward(transformer: Transformer, longest: int) -> Forward:
    """Return the forward pass of a packed row. longest: no sequence has more tokens."""
    model, takes_types = transformer._model, transformer._takes_types
    groups = (Group(0, 1, longest),)  # the kernel needs only the length of the longest sequence

    def forward(ids: Tensor, positions: Tensor, types: Tensor, stops: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "position_ids": positions}
        if takes_types:
            inputs["token_type_ids"] = types
        with attention.packed_row(attention.PackedRow(groups, None, stops)):
            hidden: Tensor = model(**inputs, output_hidden_states=False).last_hidden_state
        return hidden

    return forward


def graphed(forward: Forward, example: Sequence[Tensor]) -> Forward:
    """Return the forward pass as a CUDA graph. The next call overwrites the result, in the order of the GPU."""
    inputs = [tensor.clone() for tensor in example]
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):  # kernels are chosen and memory is allocated in the first calls
            forward(*inputs)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(*inputs)

    def replay(*tensors: Tensor) -> Tensor:
        for mine, tensor in zip(inputs, tensors, strict=True):
            mine.copy_(tensor)
        graph.replay()
        return output

    return replay
