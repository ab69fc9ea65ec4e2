"""Loads a compiled graph from its folder, and runs it."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import native
from .threads import ThreadChoice

_FACTS = "facts.json"
_GRAPH = "graph"  # graph.so and graph.json, as PyTorch's runner expects them
_ATTENTION = "attention.so"


class NotCompiled(Exception):
    """There is no compiled graph; the message says why, in one line."""


class Damaged(NotCompiled):
    """The files of a compiled graph are not those that were written."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What is stored with a graph.

    layers: whose hidden states it returns. max_tokens: the longest row that it computes (the shortest has 2
    tokens). failed: why there is no graph, if compiling failed in a way that will not change; else None. hashes:
    SHA-256 of the other files, by name.
    """

    layers: tuple[int, ...] = ()
    max_tokens: int = 0
    failed: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the facts to a file in the folder."""
        (folder / _FACTS).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> GraphFacts:
        """Return the facts in the folder. Raises OSError or ValueError."""
        facts = json.loads((folder / _FACTS).read_text())
        return cls(tuple(facts["layers"]), int(facts["max_tokens"]), facts["failed"], facts["hashes"])


class CompiledForward:
    """A compiled graph, ready to run on the CPU.

    Raises NotCompiled if it cannot be loaded from the folder, and Damaged if it should be compiled again.
    """

    def __init__(self, folder: Path) -> None:
        self._threads = ThreadChoice()
        try:
            self.facts = GraphFacts.read(folder)
            if self.facts.failed is not None:
                raise NotCompiled(self.facts.failed)
            if hashes_in(folder) != self.facts.hashes:  # a program that was cut off would crash the process
                raise Damaged(f"the compiled graph in {folder} is damaged")
            native.use(folder / _ATTENTION)
            # PyTorch's own loader of packages would extract the whole package again for each process.
            self._runner: Any = torch._C._aoti.AOTIModelContainerRunnerCpu(str(folder / f"{_GRAPH}.so"), 1)
        except (OSError, ValueError, KeyError) as exc:
            raise Damaged(f"the compiled graph in {folder} is damaged: {str(exc)[:200]}") from exc
        except RuntimeError as exc:
            raise NotCompiled(f"the compiled graph in {folder} cannot be loaded: {str(exc)[:200]}") from exc

    def can_compute(self, num_tokens: int, layers: frozenset[int]) -> bool:
        """Whether the graph computes these layers for a row of this length."""
        return 2 <= num_tokens <= self.facts.max_tokens and layers.issubset(self.facts.layers)

    def __call__(self, ids: Tensor, positions: Tensor, ends: Tensor, types: Tensor) -> dict[int, Tensor]:
        """Return the hidden states of the graph's layers, (T, H) each. Arguments: as in PackedGraph.forward."""
        num_tokens = ids.shape[1]
        alone = self._threads.should_run_alone(num_tokens)
        start = time.perf_counter()
        with native.one_thread() if alone else nullcontext():
            outputs = self._runner.run([ids, positions, ends, types])
        self._threads.note(num_tokens, time.perf_counter() - start, alone=alone)
        return dict(zip(self.facts.layers, outputs, strict=True))


def unpack(package: Path, folder: Path) -> None:
    """Extract from PyTorch's package what the runner needs: the shared library, and the list of its operators."""
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            for suffix in (".so", ".json"):
                if name.endswith(f".wrapper{suffix}"):
                    (folder / f"{_GRAPH}{suffix}").write_bytes(archive.read(name))


def hashes_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a graph's folder, except its facts. Raises OSError."""
    files = [path for path in folder.iterdir() if path.name != _FACTS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attention_library(folder: Path) -> Path:
    """Return the path of the attention operator's shared library."""
    return folder / _ATTENTION
