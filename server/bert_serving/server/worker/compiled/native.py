"""The attention of a compiled graph: one operator, `bert_serving::packed_attention`, for a whole packed row.

It computes the same as attention.packed_attention, but in one call for all sequences. Its code is
packed_attention.cpp, compiled by the C++ compiler that PyTorch's compiler uses too.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("packed_attention.cpp")
_FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-funroll-loops", "-fno-math-errno", "-fopenmp"]
_FLAGS += ["-std=c++17", "-shared", "-fPIC", "-Wno-psabi"]
_TIMEOUT_S = 300
_THREADED = 1 << 14  # with fewer numbers in the queries than this, a second thread costs more than it brings

_Function = Callable[..., Any]
_loaded: dict[str, _Function] = {}  # the code of the operator, by name, once it is loaded


def find_compiler() -> str | None:
    """Return the path of the C++ compiler, or None if there is none."""
    return shutil.which("g++")


def build(compiler: str, path: Path) -> None:
    """Compile the operator's code to a shared library. Raises subprocess.SubprocessError or OSError."""
    command = [compiler, *_FLAGS, str(SOURCE), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)


@cache
def define() -> torch.library.Library:
    """Make the operator known to PyTorch, so that it can be traced. It exists as long as the returned object."""
    library = torch.library.Library("bert_serving", "DEF")  # type: ignore[no-untyped-call]
    library.define(  # type: ignore[no-untyped-call]
        "packed_attention(Tensor query, Tensor key, Tensor value, Tensor ends, float scale, int window) -> Tensor"
    )
    library.impl("packed_attention", _attend, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake("bert_serving::packed_attention", _shape_of_output, lib=library)
    return library


def use(path: Path) -> None:
    """Let the operator run the code of a shared library that `build` has made. Raises OSError."""
    define()
    if not _loaded:  # all libraries are made from the same source
        library = ctypes.CDLL(str(path))
        function = library.packed_attention
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = [pointer] * 6 + [number] * 3
        function.argtypes += [ctypes.c_float, number, ctypes.c_int32, ctypes.c_int32]
        function.restype = None
        _loaded["packed_attention"] = function
        _loaded["set_num_threads"] = library.set_num_threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Let what the calling thread computes run in this thread alone.

    Unlike torch.set_num_threads, this does not change the number that other threads start with.
    """
    before = _loaded["set_num_threads"](1)
    try:
        yield
    finally:
        _loaded["set_num_threads"](before)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Return the attention output, (1, T, N, D).

    query, key, value: (1, N, T, D). ends: where each sequence ends in the row, (B,) int64.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)
    output: Tensor = torch.ops.bert_serving.packed_attention(query, key, value, ends, scale, sliding_window or 0)
    return output


def _shape_of_output(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float, window: int) -> Tensor:
    batch, heads, tokens, width = query.shape
    return value.new_empty((batch, tokens, heads, width))


def _attend(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float, window: int) -> Tensor:
    _, heads, tokens, width = query.shape
    if not key.shape == value.shape == query.shape or ends.dtype is not torch.int64:
        raise ValueError(f"expected three equal shapes, got {query.shape}, {key.shape} and {value.shape}")
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    output = torch.empty((1, tokens, heads, width), dtype=value.dtype)
    strides = (ctypes.c_int64 * 6)(*(x.stride(dim) for x in (query, key, value) for dim in (2, 1)))
    num_threads = torch.get_num_threads() if query.numel() > _THREADED else 1
    pointers = [x.data_ptr() for x in (query, key, value, output)]
    is_bfloat16 = value.dtype is torch.bfloat16
    sizes = (len(ends), heads, width, scale, window)
    _loaded["packed_attention"](*pointers, strides, ends.data_ptr(), *sizes, is_bfloat16, num_threads)
    return output
