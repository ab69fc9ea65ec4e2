"""Runs a model on a CUDA device that does not exist, and records what the host would do with it.

PyTorch's fake tensors have a shape, a dtype and a device, but no values. So this shows which tensors meet, what is
copied and what waits for the device, but no vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import numpy as np
import torch
from bert_serving.server.model.spec import ModelSpec
from bert_serving.server.worker import attention, checkpoint, cuda_graphs, execution
from bert_serving.server.worker.loading import LoadedModel, load
from bert_serving.server.worker.micro_batches import MicroBatch
from bert_serving.server.worker.transformer import Execution
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn.attention import varlen  # noqa: F401  # registers torch_attn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")

_Result = TypeVar("_Result")
_aten = torch.ops.aten
_VARLEN = [argument.name for argument in torch.ops.torch_attn._varlen_attn.default._schema.arguments]
# Methods that need the device, and the same operations that do not.
_SAME: dict[Any, Any] = {
    torch.Tensor.contiguous: _aten.contiguous.default,
    torch.Tensor.copy_: _aten.copy_.default,
    torch.Tensor.nonzero: _aten.nonzero.default,
}
_NUM_FOUND = 3  # how many numbers are not 0 in every fake tensor


class Copy(NamedTuple):
    """A copy between the host and the device. waits: the host waits until it has ended."""

    to_device: bool
    num_bytes: int
    waits: bool


@dataclass(slots=True)
class Step:
    """What happened in one step: a micro-batch, or the end of a batch.

    waits: names of the operations for which the host waits. mixed: those that got tensors of both devices, as
    (name, number of dimensions of the host's tensor). unready: operations that read memory of the host before the
    copy into it has ended. num_splits: this argument of each call of the attention kernel for packed rows.
    """

    copies: list[Copy] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    mixed: list[tuple[str, int]] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)
    num_splits: list[object] = field(default_factory=list)


class FakeCuda:
    """The device, and what happened on it since `new_step`."""

    def __init__(self) -> None:
        self.tensors = FakeTensorMode()
        self.step = Step()
        self._pinned: list[Tensor] = []
        self._copying: list[Tensor] = []

    def new_step(self) -> Step:
        """Return what happened in the last step, and begin the next one."""
        done, self.step = self.step, Step()
        return done

    def pin(self, tensor: Tensor) -> Tensor:
        """Return a copy in pinned memory."""
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def note_copy(self, source: Tensor, target: Tensor, *, non_blocking: bool) -> None:
        """Note that a tensor is copied to the other device."""
        to_device = target.device.type == "cuda"
        waits = not non_blocking or (to_device and not _shares_memory(source, self._pinned))
        self.step.copies.append(Copy(to_device, source.nbytes, waits))
        if not to_device and not waits:
            self._copying.append(target)

    def check_ready(self, tensor: Tensor, reader: str) -> None:
        """Note if the tensor is on the host and still being written by the device."""
        if _shares_memory(tensor, self._copying):
            self.step.unready.append(reader)

    def wait(self) -> None:
        """Note that the host waits until the device has done everything."""
        self.step.waits.append("synchronize")
        self._copying.clear()

    @contextmanager
    def running(self) -> Iterator[FakeCuda]:
        """Within this context, new tensors are fake, and tensors with device cuda:0 can be made."""
        stream, event = mock.Mock(synchronize=self.wait), mock.Mock()
        with ExitStack() as stack:
            stack.enter_context(mock.patch("torch.cuda.current_stream", return_value=stream))
            stack.enter_context(mock.patch("torch.cuda.Event", return_value=event))
            stack.enter_context(self.tensors)
            stack.enter_context(_Operations(self))
            stack.enter_context(_Methods(self))
            yield self


class _Operations(TorchDispatchMode):
    """Sees every operation that PyTorch computes."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), str(func)
        if func.namespace == "aten":  # in inference mode, operations that consist of others arrive as a whole
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        of_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        if func.namespace == "torch_attn":
            self._cuda.step.num_splits.append(dict(zip(_VARLEN, args, strict=False)).get("num_splits"))
        if not func.is_view:
            for tensor in of_host:
                self._cuda.check_ready(tensor, name)
        if func is _aten.nonzero.default and tensors[0].device.type == "cuda":
            self._cuda.step.waits.append(name)
            return tensors[0].new_empty(_NUM_FOUND, tensors[0].ndim, dtype=torch.int64)
        result = func(*args, **kwargs)
        if func is _aten._to_copy.default or func is _aten.copy_.default:
            source = tensors[-1]
            if source.device != result.device:
                non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
                self._cuda.note_copy(source, result, non_blocking=non_blocking)
        elif of_host and len(of_host) < len(tensors):
            self._cuda.step.mixed.append((name, max(tensor.ndim for tensor in of_host)))
        return result


class _Methods(TorchFunctionMode):
    """Replaces the methods that PyTorch without CUDA cannot run on fake tensors."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            return _getitem(*args)
        if func is torch.Tensor.pin_memory:
            return self._cuda.pin(args[0])
        if func is torch.Tensor.numpy:
            assert args[0].device.type == "cpu", "a tensor on a CUDA device has no numpy array"
            self._cuda.check_ready(args[0], "numpy")
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        return _SAME.get(func, func)(*args, **kwargs or {})


def _getitem(tensor: Tensor, index: Any) -> Tensor:
    """Return tensor[index]. The index consists of numbers, slices, None, Ellipsis and tensors of integers."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in (part for part in parts if not isinstance(part, Tensor)):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        num_named = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (tensor.ndim - num_named)
    dim, indices = 0, {}
    for part in parts:
        if part is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(part, int):
            tensor = tensor.select(dim, part)
            continue
        elif isinstance(part, slice):
            if part != slice(None):
                tensor = _aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
        else:
            indices[dim] = part
        dim += 1
    if indices:
        tensor = _aten.index.Tensor(tensor, [indices.get(i) for i in range(max(indices) + 1)])
    return tensor


def _shares_memory(tensor: Tensor, others: list[Tensor]) -> bool:
    storage = tensor.untyped_storage()._cdata
    return any(other.untyped_storage()._cdata == storage for other in others)


def steps_of(cuda: FakeCuda, stages: Generator[list[MicroBatch], None, _Result]) -> tuple[list[Step], _Result]:
    """Compute all micro-batches; return what happened in each of them, and at last at the end of the batch."""
    done = []
    cuda.new_step()
    try:
        while True:
            for each in next(stages):
                each.compute()
                done.append(cuda.new_step())
    except StopIteration as end:
        return [*done, cuda.new_step()], end.value


class EagerRecorder(cuda_graphs.Recorder):
    """Takes the place of a Recorder: its recordings compute the pass again, and copy its result."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, run: Callable[[], dict[int, Tensor]]) -> cuda_graphs.Recording:
        """Compute the pass, and return what does so again."""
        with cuda_graphs.OnlyRecordable():
            hidden = run()

        def replay() -> None:
            for layer, states in run().items():
                hidden[layer].copy_(states)

        return cuda_graphs.Recording(replay, hidden, start_s=1.0, replay_s=0.5)


@contextmanager
def without_recording() -> Iterator[None]:
    """Within this context, CUDA graphs need no GPU, and compute their pass again each time."""
    with mock.patch.object(cuda_graphs, "Recorder", EagerRecorder):
        yield


def load_on_fake_cuda(
    cuda: FakeCuda, folder: Path, dtype: torch.dtype, *, padded: bool = False, **options: object
) -> LoadedModel:
    """Return the model in the folder as if it had been loaded on a CUDA device.

    padded: let it run padded, even if it can run packed. options: of Encoder.
    """
    models: list[nn.Module] = []

    def placed(model: Any, device: torch.device) -> Any:
        models.append(place(model, device))
        return model

    place: Callable[[Any, torch.device], Any] = checkpoint._placed
    spec = ModelSpec.checked(model_dir=folder, device="cpu", dtype="float32", **options)
    with (
        mock.patch.object(checkpoint, "_placed", placed),
        mock.patch.object(execution, "prepack", return_value=None),
    ):
        loaded = load(spec)
    transformer = loaded.transformer
    if transformer.sparse_head is not None:
        head = transformer.sparse_head._logits = copy.deepcopy(transformer.sparse_head._logits)
        _move(cuda, head, torch.float32)
    for model in models:
        _move(cuda, model, torch.float32)
    _move(cuda, transformer._model, dtype)
    if isinstance(loaded.planner.default.modules, nn.Module):
        _move(cuda, loaded.planner.default.modules, torch.float32)
    because = "the test asks for it" if padded else transformer.padded_because
    if padded:
        transformer._model.set_attn_implementation(attention.REFERENCE)
    has_varlen = because is None and dtype is not torch.float32
    transformer._inputs = replace(transformer._inputs, device=CUDA)
    transformer._execution = Execution(padded_because=because, has_varlen=has_varlen)
    return loaded


def _move(cuda: FakeCuda, module: nn.Module, dtype: torch.dtype) -> None:
    """Replace the weights of a module by fake ones on the device."""

    def moved(tensor: Tensor) -> Tensor:
        fake = tensor if isinstance(tensor, FakeTensor) else cuda.tensors.from_tensor(tensor)
        with cuda.tensors:
            return fake.to(CUDA, dtype if tensor.is_floating_point() else tensor.dtype)

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(moved(weight.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer)
