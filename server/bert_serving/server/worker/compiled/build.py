"""Compiles the graph of a model, in a process of its own: `python -m bert_serving.server.worker.compiled.build`.

Standard input has the options of the model, as JSON. The process puts the graph into the cache, or why there is
none. It ends when its parent ends.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ...model.errors import ModelError, one_line
from ...model.spec import ModelSpec
from ..execution import compute_linear_in
from ..loading import LoadedModel, load
from ..transformer import takes_types
from . import operators
from .cache import Cache, operators_key
from .forward import CompiledForward, GraphFacts, hashes_in, operator_library, share_weights, unpack
from .fusion import fuse
from .graph import PackedGraph, compile_program, traced
from .quantization import MIN_INT8_COSINE, Quantization
from .target import Target

_NICENESS = 10  # requests come first: beside a worker that is always busy, it gets a tenth of a core's time
_PARENT_CHECK_S = 1.0


def main(key: str, num_threads: int, parent_pid: int) -> None:
    """Put the graph of the spec on standard input into the cache under the key, unless it is there."""
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True).start()
    torch.set_num_threads(num_threads)
    spec = ModelSpec.model_validate_json(sys.stdin.read())
    if spec.compile != "wait":  # with "wait", a start or a reload waits for the graph
        os.nice(_NICENESS)
    cache = Cache(spec.compile_cache)
    with cache.locked(key):  # another worker may be compiling the same graph
        if cache.find(key) is not None:
            return
        loaded = load(spec)
        target = Target.of(spec, loaded)
        if target.key != key:
            raise SystemExit("the model's files have changed, or Linux lets only one of two processes use AMX")
        with cache.scratch() as scratch:
            _build(target, loaded, scratch)


def _build(target: Target, loaded: LoadedModel, scratch: Path) -> None:
    # The compiler's own files are removed with the scratch folder.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor"))
    folder = scratch / "graph"
    folder.mkdir()
    facts = _compile(target, loaded, scratch, folder)
    if facts.failed is not None:
        shutil.rmtree(folder)
        folder.mkdir()
    facts.write(folder)
    target.cache.add(target.key, folder)


def _compile(target: Target, loaded: LoadedModel, scratch: Path, folder: Path) -> GraphFacts:
    """Write a graph and its operators to the folder; return its facts, or that there never will be one.

    May raise any exception for what may work the next time: the compiler may lack a header, or disk or memory.
    """
    add_operators(target, folder)
    operators.use(operator_library(folder))
    try:
        program, int8_products = program_of(
            loaded, target.layers, max_tokens=target.max_tokens, integers=target.spec.dtype == "int8"
        )
    except (MemoryError, OSError):
        raise
    except Exception as exc:  # the code of a model may be anything
        return GraphFacts(failed=f"PyTorch cannot trace this model ({one_line(exc)[:200]})")
    unpack(compile_program(program, scratch), folder)
    share_weights(folder)
    facts = GraphFacts(target.layers, target.max_tokens, hashes=hashes_in(folder), int8_products=int8_products)
    facts.write(folder)
    compiled = loaded.transformer.with_compiled(CompiledForward(folder))
    try:
        cosine = loaded.check.smallest_cosine(compiled, loaded.dtype)
    except ModelError as exc:
        return GraphFacts(failed=str(exc))
    if int8_products and cosine < MIN_INT8_COSINE:
        return GraphFacts(failed=f"8-bit integers are too coarse for this model (cosine {cosine:.4f})")
    return facts


def add_operators(target: Target, folder: Path) -> None:
    """Put the operators' library into the folder of a graph. All graphs have the same, so it is compiled once."""
    cache, key = target.cache, operators_key(target.compiler)
    with cache.locked(key):
        found = cache.find(key)
        if found is None or not _is_whole(found):
            with cache.scratch() as scratch:
                new = scratch / "operators"
                new.mkdir()
                operators.build(target.compiler, operator_library(new))
                GraphFacts(hashes=hashes_in(new)).write(new)
                found = cache.add(key, new)
        shutil.copy(operator_library(found), operator_library(folder))


def _is_whole(folder: Path) -> bool:
    try:
        return GraphFacts.read(folder).hashes == hashes_in(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def program_of(
    loaded: LoadedModel, layers: Sequence[int], *, max_tokens: int, integers: bool
) -> tuple[ExportedProgram, int]:
    """Return what is compiled, and how many of its products are in 8-bit integers.

    May raise any exception, as the code of a model may. layers: whose hidden states it returns. max_tokens: the
    longest row. integers: whether products may be in 8-bit integers.
    """
    model = loaded.load_model()
    dtype = operators.product_dtype()
    # The GELU of the operators is not exact enough for float32 alone.
    is_fused = loaded.dtype is dtype and (integers or dtype is torch.bfloat16)
    if not is_fused:
        compute_linear_in(loaded.dtype, model)
    graph = PackedGraph(model, layers, takes_types=takes_types(model))
    program = traced(graph, max_tokens=max_tokens)
    if dtype is None or not is_fused:
        return program, 0
    module = program.module(check_guards=False)
    quantization = Quantization(loaded, module, layers, dtype) if integers else None
    linears = fuse(module, dtype)
    int8_products = 0 if quantization is None else quantization.apply(module, linears)
    if not int8_products and dtype is torch.float32:
        return program, 0
    return traced(module, max_tokens=max_tokens), int8_products


def _end_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
