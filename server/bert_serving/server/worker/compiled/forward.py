"""Loads a compiled graph from its folder, and runs it."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..packing import LANE_TOKENS
from . import operators
from .threads import ThreadChoice

_FACTS = "facts.json"
_GRAPH = "graph"  # graph.so and graph.json, as PyTorch's runner expects them
_BLOB = "graph.blob"  # the weights as PyTorch's compiler stores them
_BLOCK_BYTES = 1 << 20
_WEIGHTS = "weights.pt"  # the weights if they are shared; then there is no blob
_OPERATORS = "operators.so"
#: Limit for the threads that compute passes at the same time: Python takes a part of the time of each pass, and
#: only one thread at a time runs Python.
MAX_LANES = 8


class NotCompiled(Exception):
    """There is no compiled graph; the message says why, in one line."""


class Damaged(NotCompiled):
    """The files of a compiled graph are not those that were written."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What is stored with a graph.

    layers: whose hidden states it returns. max_tokens: the longest row that it computes (the shortest has 2
    tokens). failed: why there is no graph, if compiling failed in a way that will not change; else None. hashes:
    SHA-256 of the other files, by name. int8_products: how many products are in 8-bit integers.
    """

    layers: tuple[int, ...] = ()
    max_tokens: int = 0
    failed: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    int8_products: int = 0

    def write(self, folder: Path) -> None:
        """Write the facts to a file in the folder."""
        (folder / _FACTS).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> GraphFacts:
        """Return the facts in the folder. Raises OSError or ValueError."""
        facts = json.loads((folder / _FACTS).read_text())
        return cls(
            tuple(facts["layers"]),
            int(facts["max_tokens"]),
            facts["failed"],
            facts["hashes"],
            facts["int8_products"],
        )


class CompiledForward:
    """A compiled graph, ready to run on the CPU.

    Raises NotCompiled if it cannot be loaded from the folder, and Damaged if it should be compiled again.
    """

    def __init__(self, folder: Path) -> None:
        self._threads = ThreadChoice()
        self._lock = threading.Lock()
        try:
            self.facts = GraphFacts.read(folder)
            if self.facts.failed is not None:
                raise NotCompiled(self.facts.failed)
            if hashes_in(folder) != self.facts.hashes:  # a program that was cut off would crash the process
                raise Damaged(f"the compiled graph in {folder} is damaged")
            operators.use(folder / _OPERATORS)
            self._graph = _graph_with_weights(folder)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise Damaged(f"the compiled graph in {folder} is damaged: {str(exc)[:200]}") from exc
        except RuntimeError as exc:
            raise NotCompiled(f"the compiled graph in {folder} cannot be loaded: {str(exc)[:200]}") from exc

    @property
    def micro_batch_tokens(self) -> int:
        """The tokens of a pass that occupies all threads. More are not faster, and small requests wait longer."""
        return min(self.facts.max_tokens, LANE_TOKENS * torch.get_num_threads())

    def can_compute(self, num_tokens: int, layers: frozenset[int]) -> bool:
        """Whether the graph computes these layers for a row of this length."""
        return 2 <= num_tokens <= self.facts.max_tokens and layers.issubset(self.facts.layers)

    def __call__(self, ids: Tensor, positions: Tensor, ends: Tensor, types: Tensor) -> dict[int, Tensor]:
        """Return the hidden states of the graph's layers, (T, H) each. Arguments: as in PackedGraph.forward."""
        run = self._graph.run if operators.is_in_one_thread() else self._run_timed
        return dict(zip(self.facts.layers, run([ids, positions, ends, types]), strict=True))

    def _run_timed(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run with all threads, or with one if all would wait for one whose core is taken."""
        num_tokens = inputs[0].shape[1]
        with self._lock:  # a user's threads may call an encoder at the same time
            alone = self._threads.should_run_alone(num_tokens)
            start = time.perf_counter()
            with operators.one_thread() if alone else nullcontext():
                outputs: list[Tensor] = self._graph.run(inputs)
            self._threads.note(num_tokens, time.perf_counter() - start, alone=alone)
        return outputs


def _graph_with_weights(folder: Path) -> Any:
    """Load a graph and its weights."""
    graph = operators.graph(folder / f"{_GRAPH}.so", passes=MAX_LANES)
    if (folder / _WEIGHTS).exists():
        # Mapped into memory, so all processes with this graph share one copy.
        graph.use_weights(torch.load(folder / _WEIGHTS, mmap=True, weights_only=True))
    elif (folder / _BLOB).exists():  # else the program has the weights
        graph.use_blob(str(folder / _BLOB))
    return graph


def can_load_blob() -> bool:
    """Whether this PyTorch loads weights that are not in the program. PyTorch 2.11 ends the process."""
    return hasattr(torch._C._aoti.AOTIModelContainerRunnerCpu, "update_constant_buffer_from_blob")


def share_weights(folder: Path) -> None:
    """Let processes share the weights of a new graph, if PyTorch gives them as plain tensors, by their names."""
    # PyTorch's own loader of packages would extract the whole package again for each process.
    runner: Any = torch._C._aoti.AOTIModelContainerRunnerCpu(str(folder / f"{_GRAPH}.so"), 1)
    if (folder / _BLOB).exists():
        runner.update_constant_buffer_from_blob(str(folder / _BLOB))
    by_origin = runner.extract_constants_map(False)
    origins: dict[str, str] = runner.get_constant_names_to_original_fqns()
    is_plain = all(tensor.layout is torch.strided for tensor in by_origin.values())
    if is_plain and len(set(origins.values())) == len(origins):  # names of the compiler's own constants may repeat
        # Copies begin at a multiple of 64 bytes, in this process and in the file.
        torch.save({name: by_origin[origin].clone() for name, origin in origins.items()}, folder / _WEIGHTS)
        (folder / _BLOB).unlink(missing_ok=True)


def unpack(package: Path, folder: Path) -> None:
    """Extract what the runner needs from PyTorch's package: the program, its list of operators, the weights."""
    needed = {".wrapper.so": ".so", ".wrapper.json": ".json", ".wrapper_weights.blob": ".blob"}
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            for end, suffix in needed.items():
                if name.endswith(end):
                    with archive.open(name) as source, (folder / f"{_GRAPH}{suffix}").open("wb") as copy:
                        shutil.copyfileobj(source, copy)


def hashes_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a graph's folder, except its facts. Raises OSError."""
    files = [path for path in folder.iterdir() if path.name != _FACTS]
    return {path.name: _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:  # in blocks, because the weights may be large
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def operator_library(folder: Path) -> Path:
    """Return the path of the operators' shared library."""
    return folder / _OPERATORS
