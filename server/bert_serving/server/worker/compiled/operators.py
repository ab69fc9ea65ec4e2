"""The operators of a compiled graph, `bert_serving::...`. Their code is in native/.

    packed_attention    attention within each sequence of a packed row; the same as attention.packed_attention
    product             a linear layer, and GELU if asked for
    product_and_norm    a linear layer, a residual, and layer normalization
    feed_forward        two linear layers with GELU between them, the residual, and layer normalization

The same library has the class `Graph`, which runs a compiled graph. The code is compiled for this processor by the
C++ compiler that PyTorch's compiler uses too. Products are there only on processors with AVX-512's dot products of
8-bit integers; they compute in these, or in `product_dtype`.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).with_name("native")
SOURCES = sorted(_FOLDER.glob("*.*"))
_FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-funroll-loops", "-fno-math-errno", "-fopenmp"]
_FLAGS += ["-std=c++20", "-fPIC", "-Wno-psabi"]
_TIMEOUT_S = 300
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18  # a system call, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA

_SIGNATURES = [
    "packed_attention(Tensor query, Tensor key, Tensor value, Tensor ends, float scale, int window) -> Tensor",
    "product(Tensor x, Tensor[] linear, bool gelu) -> Tensor",
    "product_and_norm(Tensor x, Tensor[] linear, Tensor residual, Tensor weight, Tensor bias, float epsilon)"
    " -> Tensor",
    "feed_forward(Tensor x, Tensor[] up, Tensor[] down, Tensor weight, Tensor bias, float epsilon) -> Tensor",
]

NAMES = [signature.partition("(")[0] for signature in _SIGNATURES]

_loaded: list[ctypes.CDLL] = []  # the library with the code, once it is loaded
_local = threading.local()


def find_compiler() -> str | None:
    """Return the path of the C++ compiler, or None if there is none."""
    return shutil.which("g++")


@cache
def may_use_tiles() -> bool:
    """Whether this process may use AMX's tiles, if the processor has them. A process must ask Linux once.

    Sandboxes with a kernel of their own, such as gVisor, do not know the question.
    """
    if platform.machine() != "x86_64":
        return False
    answer: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILES)
    return answer == 0


def build(compiler: str, path: Path, *flags: str) -> None:
    """Compile the code to a shared library, with more flags of the compiler.

    Raises subprocess.SubprocessError or OSError.
    """
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    if not may_use_tiles():
        flags += ("-DBERT_SERVING_NO_AMX",)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ThreadPoolExecutor() as pool:
        sources = {source: f"{folder}/{source.stem}.o" for source in SOURCES if source.suffix == ".cpp"}
        compile_ = [compiler, *_FLAGS, *flags, *includes, "-c"]
        list(pool.map(lambda source, to: _run([*compile_, str(source), "-o", to]), sources, sources.values()))
        _run([compiler, *_FLAGS, "-shared", *sources.values(), *libraries, "-o", str(path)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)


@cache
def define() -> torch.library.Library:
    """Make the operators known to PyTorch, so that they can be traced, as long as the returned object exists."""
    library = torch.library.Library("bert_serving", "DEF")  # type: ignore[no-untyped-call]
    shapes: list[Callable[..., Tensor]] = [_attention_shape, _product_shape, _norm_shape, _norm_shape]
    for signature, shape in zip(_SIGNATURES, shapes, strict=True):
        library.define(signature, tags=torch.Tag.flexible_layout)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"bert_serving::{signature.partition('(')[0]}", shape, lib=library)
    return library


def use(path: Path) -> None:
    """Let the operators run the code of a shared library that `build` has made. Raises OSError or RuntimeError."""
    define()
    if not _loaded:  # all libraries are made from the same source
        library = ctypes.CDLL(str(path))
        if library.uses_tiles() and not may_use_tiles():  # the first instruction would end the process
            raise RuntimeError("the operators use AMX, which Linux does not let this process use")
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        _loaded.append(library)


def operation(name: str) -> torch._ops.OpOverload:
    """Return an operator as it appears in a graph."""
    define()
    found: torch._ops.OpOverload = getattr(torch.ops.bert_serving, name).default
    return found


def graph(program: Path, *, passes: int) -> Any:
    """Return a compiled graph, without weights. passes: how many threads may run it at the same time.

    Raises RuntimeError.
    """
    return torch.classes.bert_serving.Graph(str(program), passes)


def product_dtype() -> torch.dtype | None:
    """Return the dtype of products that are not in 8-bit integers, and of what `product` returns.

    It is bfloat16, or float32 on a processor without bfloat16. None: the code that is loaded has no products.
    """
    return {2: torch.bfloat16, 4: torch.float32}.get(_loaded[0].product_bytes() if _loaded else 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let what the calling thread computes run in this thread alone.

    Unlike torch.set_num_threads, this does not change the number that other threads start with.
    """
    before, _local.is_in_one_thread = _loaded[0].set_num_threads(1), True
    try:
        yield
    finally:
        _loaded[0].set_num_threads(before)
        _local.is_in_one_thread = False


def is_in_one_thread() -> bool:
    """Whether the calling thread is within `one_thread`."""
    return getattr(_local, "is_in_one_thread", False)


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
    output: Tensor = torch.ops.bert_serving.packed_attention(query, key, value, ends, scale, sliding_window or 0)
    return output


def _attention_shape(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float, window: int) -> Tensor:
    batch, heads, tokens, width = query.shape
    return value.new_empty((batch, tokens, heads, width))


def _product_shape(x: Tensor, linear: Sequence[Tensor], gelu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], linear[1].shape[0]), dtype=product_dtype())


def _norm_shape(x: Tensor, linear: Sequence[Tensor], *others: object) -> Tensor:
    down = others[0] if isinstance(others[0], list) else linear
    return x.new_empty((*x.shape[:-1], down[1].shape[0]), dtype=torch.float32)
