"""Which graph a loaded model needs, where the cache keeps it, and how it gets there."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import torch

from ...model.errors import one_line
from ...model.spec import ModelSpec
from ..device import CPU_MICRO_BATCH_TOKENS
from . import operators
from .cache import Cache, key_of, operators_key
from .forward import CompiledForward, Damaged, NotCompiled

if TYPE_CHECKING:
    from ..loading import LoadedModel

log = logging.getLogger(__name__)

_PROGRAM = "bert_serving.server.worker.compiled.build"
_MAX_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Target:
    """The graph of one model on this machine.

    layers: whose hidden states it returns, counted from 0. max_tokens: the longest row that it computes.
    """

    spec: ModelSpec
    cache: Cache
    key: str
    compiler: str
    layers: tuple[int, ...]
    max_tokens: int

    @classmethod
    def of(cls, spec: ModelSpec, loaded: LoadedModel) -> Target:
        """Return the target of a model. Raises NotCompiled if it has none on this machine."""
        compiler = operators.find_compiler()
        if compiler is None:
            raise NotCompiled("there is no C++ compiler (g++)")
        if (reason := _why_not(spec, loaded)) is not None:
            raise NotCompiled(reason)
        layers = tuple(sorted(loaded.check.layers))
        max_tokens = max(CPU_MICRO_BATCH_TOKENS, loaded.max_seq_len)
        dtype = "int8" if spec.dtype == "int8" else str(loaded.dtype)
        try:
            cache = Cache(spec.compile_cache)
            key = key_of(loaded.fingerprint, layers, dtype, max_tokens, operators_key(compiler))
        except (OSError, subprocess.SubprocessError) as exc:
            raise NotCompiled(one_line(exc)) from exc
        return cls(spec, cache, key, compiler, layers, max_tokens)

    def find(self) -> CompiledForward | None:
        """Load the graph from the cache; None if it is not there, or damaged. Raises NotCompiled."""
        folder = self.cache.find(self.key)
        try:
            return None if folder is None else CompiledForward(folder)
        except Damaged as exc:
            log.warning("%s: removed", exc)
            self.cache.remove(self.key)
            return None

    def build(self) -> CompiledForward:
        """Let a process of its own compile the graph, wait for it, and load the graph. Raises NotCompiled.

        If another process compiles the same graph, this waits for that one.
        """
        arguments = [self.key, str(torch.get_num_threads()), str(os.getpid())]
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            try:
                subprocess.run(
                    [sys.executable, "-X", "faulthandler", "-m", _PROGRAM, *arguments],
                    input=self.spec.model_dump_json(),
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    check=True,
                )
            except (OSError, subprocess.SubprocessError) as exc:
                raise NotCompiled(_place_of_crash(said, exc) or _last_line(said) or one_line(exc)) from exc
        found = self.find()
        if found is None:
            raise NotCompiled("the process that compiles has ended without a graph")
        return found


def _why_not(spec: ModelSpec, loaded: LoadedModel) -> str | None:
    """Return why a model has no graph, or None if it has one."""
    transformer = loaded.transformer
    if transformer.device.type != "cpu":
        return "only passes on the CPU are compiled"
    if transformer.padded_because is not None:
        return "only packed passes are compiled"
    if loaded.dtype is torch.float16:
        return "passes in float16 are not compiled"
    if spec.mask_cls_sep:
        return "with -mask_cls_sep, passes are not compiled"
    return None


def _place_of_crash(said: IO[str], exc: Exception) -> str | None:
    """Return where a process was when a signal ended it; None if it ended in another way."""
    if not isinstance(exc, subprocess.CalledProcessError) or exc.returncode >= 0:
        return None
    said.seek(0)
    stack = re.search(r"most recent call first\):\n\s*File (.+)", said.read())
    name = signal.Signals(-exc.returncode).name
    return f"the process that compiles died of {name}" + (f" in {stack[1]}" if stack else "")


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1][:_MAX_REASON_CHARS] if lines else ""
