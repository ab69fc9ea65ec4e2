"""Packed rows on a GPU, computed by CUDA graphs.

A GPU often needs less time for a forward pass than Python needs to start its kernels, which are some hundred. A
CUDA graph is a pass that was recorded once and starts as a whole. It always computes the same number of tokens, so
there is one for each of a few sizes, and a row is filled up to the next of them. Attention does not see the
filling, and everything else computes each token alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .attention import PackedRow
from .packing import Group
from .transfers import Array, moved_together, unpacked

log = logging.getLogger(__name__)

#: Numbers of tokens.
SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
_WARM_UP_RUNS = 3  # kernels are chosen, and memory is allocated, before a pass is recorded
_TIMED_RUNS = 3
_recording = threading.Lock()  # PyTorch records one graph at a time in a process
_aten = torch.ops.aten
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIES = {_aten._to_copy, _aten.copy_, _aten.copy}

#: Computes the hidden states of some layers, (T, H) each, from a model's inputs, (1, T) each, and a packed row.
Forward: TypeAlias = "Callable[[dict[str, Tensor], PackedRow], dict[int, Tensor]]"


class NotRecorded(Exception):
    """There are no CUDA graphs; the message says why, in one line."""


class RowArrays(NamedTuple):
    """A packed row of T tokens and B sequences on the host.

    ids, positions, types: (1, T) int64. cu_seqlens: the cumulative lengths of the sequences, (B + 1,) int32.
    """

    ids: Array
    positions: Array
    types: Array
    cu_seqlens: Array

    def filled(self, num_tokens: int) -> RowArrays:
        """Return the row with tokens that belong to no sequence, and with empty sequences, at its end."""
        tokens = np.zeros((3, 1, num_tokens), np.int64)
        for target, source in zip(tokens, self[:3], strict=True):
            target[:, : source.shape[1]] = source
        cu_seqlens = np.full(max_sequences(num_tokens) + 1, self.cu_seqlens[-1], np.int32)
        cu_seqlens[: len(self.cu_seqlens)] = self.cu_seqlens
        return RowArrays(tokens[0], tokens[1], tokens[2], cu_seqlens)


class CudaGraphs:
    """The recorded passes of a model that runs packed on a GPU, with one attention kernel for all sequences.

    forward: what is recorded. device: of the model. layers: whose hidden states `forward` returns. longest: the
    largest number of tokens in a sequence. max_tokens: the largest number in a row. takes_types: whether token
    type ids are an input.

    Raises NotRecorded if the pass cannot be recorded, such as when the model's code reads a number from the GPU.
    """

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        layers: frozenset[int],
        *,
        longest: int,
        max_tokens: int,
        takes_types: bool,
    ) -> None:
        self._device = device
        self._layers = layers
        # A user's threads may call an encoder at the same time, on one stream unless they choose others.
        self._lock = threading.Lock()
        self._graphs: dict[int, _Graph] = {}
        recorder = Recorder(device)
        try:
            for size in (size for size in SIZES if size <= max_tokens):
                graph = _Graph(forward, recorder, size, min(size, longest), takes_types)
                if not graph.is_faster:  # the GPU has so much to do that Python is in time with the next kernel
                    break
                self._graphs[size] = graph
        except torch.OutOfMemoryError:
            log.warning("there is no GPU memory for more CUDA graphs than %d", len(self._graphs))
        except RuntimeError as exc:  # CUDA's errors, too
            raise NotRecorded(str(exc).splitlines()[0][:200]) from exc
        if not self._graphs:
            raise NotRecorded("recorded passes are no faster than others here")

    @property
    def sizes(self) -> list[int]:
        """The numbers of tokens of all graphs."""
        return list(self._graphs)

    def size_for(self, num_tokens: int, num_sequences: int, layers: frozenset[int]) -> int | None:
        """Return the number of tokens of the smallest graph that computes the layers for a row, or None."""
        if not layers.issubset(self._layers):
            return None
        fitting = (size for size in self._graphs if num_tokens <= size and num_sequences <= max_sequences(size))
        return next(fitting, None)

    def run(self, size: int, row: RowArrays, arrays: Sequence[Array]) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Return the hidden states of a row, (T, H) for each layer, and the arrays on the device.

        size: what `size_for` has returned for the row. The arrays travel to the device together with the row.
        """
        host = [*row.filled(size), *arrays]
        moved = moved_together(host, self._device)
        with self._lock:
            hidden = self._graphs[size].run(moved, row.ids.shape[1])
        return hidden, unpacked(moved, [torch.from_numpy(array) for array in host])[len(row) :]


def max_sequences(size: int) -> int:
    """Return the largest number of sequences in a row of this size; even empty ones take time."""
    return max(size // 16, min(size // 4, 128))


class _Graph:
    """One recorded pass, for rows that are filled up to `size` tokens.

    Its inputs and outputs always have the same places in memory.
    """

    def __init__(self, forward: Forward, recorder: Recorder, size: int, longest: int, takes_types: bool) -> None:
        zeros = np.zeros((1, longest), np.int64)
        example = RowArrays(zeros, zeros, zeros, np.array([0, longest], np.int32)).filled(size)
        self._row = moved_together(example, recorder.device)
        ids, positions, types, cu_seqlens = unpacked(self._row, [torch.from_numpy(array) for array in example])
        inputs = {"input_ids": ids, "position_ids": positions}
        if takes_types:
            inputs["token_type_ids"] = types
        # The kernel must know the length of the longest sequence before it reads where they end.
        packed_row = PackedRow((Group(0, 1, longest),), cu_seqlens=cu_seqlens)
        self._recording = recorder.record(lambda: forward(inputs, packed_row))

    @property
    def is_faster(self) -> bool:
        """Whether the GPU computes it sooner than Python could start its kernels."""
        return self._recording.replay_s < self._recording.start_s

    def run(self, moved: Tensor, num_tokens: int) -> dict[int, Tensor]:
        """Return the hidden states of the first tokens. moved: the bytes of a filled row, and of other arrays."""
        self._row.copy_(moved[: self._row.nbytes])
        self._recording.replay()
        # Copies, because the next pass overwrites the originals.
        return {layer: states[:num_tokens].clone() for layer, states in self._recording.hidden.items()}


class Recording(NamedTuple):
    """A recorded pass.

    replay: lets the GPU compute it again. hidden: where its result is then. start_s: the seconds in which Python
    started its kernels. replay_s: those in which the GPU computes it.
    """

    replay: Callable[[], None]
    hidden: dict[int, Tensor]
    start_s: float
    replay_s: float


class Recorder:
    """Records passes on one GPU. Its recordings share memory, since only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # PyTorch's own stream for recordings belongs to the GPU of the process's first one.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def record(self, run: Callable[[], dict[int, Tensor]]) -> Recording:
        """Record what the call lets the GPU do. Raises NotRecorded, or whatever the call raises."""
        with _recording, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(stream)
            with torch.cuda.stream(self._stream):
                with OnlyRecordable():  # type: ignore[no-untyped-call]
                    run()
                start_s = min(_seconds(run) for _ in range(_WARM_UP_RUNS))
            stream.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            mode = "thread_local"  # other threads of the process may use the GPU meanwhile
            recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode)
            with torch.cuda.stream(stream), recording:  # a recording that fails does not restore the stream
                hidden = run()

            def replay_and_wait() -> None:
                graph.replay()
                stream.synchronize()

            replay_and_wait()
            replay_s = min(_seconds(replay_and_wait) for _ in range(_TIMED_RUNS))
        return Recording(graph.replay, hidden, start_s, replay_s)


class OnlyRecordable(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, what a CUDA graph cannot do raises NotRecorded: to wait for the GPU, or to copy.

    This is found out first, because after a recording that fails, PyTorch's allocator no longer frees memory.
    """

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        with self:  # in inference mode, operations that consist of others arrive as a whole
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(leaf.device.type == "cuda" for leaf in given)
        has_mask = any(leaf.dtype in (torch.bool, torch.uint8) for leaf in given[1:])
        # The host waits for the number of results. Only with an index that consists of integers, it is known.
        counts = has_mask if func.overloadpacket in _INDEXING else torch.Tag.dynamic_output_shape in func.tags
        if on_gpu and (counts or torch.Tag.data_dependent_output in func.tags):
            raise NotRecorded(f"the model's code waits for the GPU ({func})")
        result = func(*args, **kwargs)
        tensors = [*given, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))]
        # Kernels take single numbers of the host as arguments, but a copy from there must not be recorded.
        is_copy = func.overloadpacket in _COPIES
        on_host = any(each.ndim or is_copy for each in tensors if each.device.type == "cpu")
        if on_host and any(each.device.type == "cuda" for each in tensors):
            raise NotRecorded(f"the model's code copies between the GPU and the host ({func})")
        return result


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
