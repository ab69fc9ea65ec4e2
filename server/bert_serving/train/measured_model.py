"""A model in a process of its own, which measures it: beside another model, its memory would be counted twice."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from ..server.model.errors import ModelError
from ..server.model.folder import ModelFolder
from ..server.model.spec import ModelSpec
from .errors import TrainError

_WEIGHTS = ("*.safetensors", "*.bin", "*.data-*")  # of Transformers, of PyTorch, of TensorFlow
_MB = 1e6


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it computes. size_mb: its weights on disk, in 10^6 bytes."""

    dimension: int
    size_mb: float
    dtype: str
    forward_kind: str


class MeasuredModel:
    """Calls an Encoder in another process, one call after the other. Raises TrainError.

    The process starts at once; the first call waits for it. So several start side by side.
    """

    def __init__(self, name: str, spec: ModelSpec) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> MeasuredModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()  # it may still be loading its model
        self._process.join()
        self._pipe.close()

    @cached_property
    def facts(self) -> ModelFacts:
        """What the process says of the model when it has loaded it."""
        found: ModelFacts = self._result()
        return found

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], float]:
        """Return the vectors, (num_texts, dimension), and the seconds that they took."""
        _ = self.facts  # they come first
        try:
            self._pipe.send(list(texts))
        except OSError as exc:
            raise TrainError(f"{self.name}: its process has ended") from exc
        found: tuple[npt.NDArray[np.float32], float] = self._result()
        return found

    def memory_mb(self) -> float:
        """Return the resident memory of the process, in 10^6 bytes."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / _MB

    def _result(self) -> Any:
        try:
            result = self._pipe.recv()
        except (EOFError, OSError) as exc:
            raise TrainError(f"{self.name}: its process has ended; is there enough memory?") from exc
        if isinstance(result, TrainError):
            raise TrainError(f"{self.name}: {result}") from result
        return result


def _serve(pipe: Connection, spec: ModelSpec) -> None:
    """Answer the calls of MeasuredModel until the pipe is closed."""
    from ..server.worker.encoder import Encoder

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, which closes the pipe
    try:
        encoder = Encoder.from_spec(spec)
        if encoder.kind not in ("embedding", "classifier", "reranker") or "NONE" in encoder.poolings:
            raise ModelError("it gives no single vector for a text")
    except (ModelError, ValueError) as exc:
        pipe.send(TrainError(str(exc)))
        return
    pipe.send(ModelFacts(encoder.dimension, _size_mb(spec), encoder.dtype_name, encoder.forward_kind))
    while True:
        try:
            texts = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        try:
            vectors = encoder.encode(texts)
        except Exception as exc:  # for the other side, which names the model
            pipe.send(TrainError(f"{type(exc).__name__}: {exc}"))
            continue
        pipe.send((vectors, time.perf_counter() - start))


def _size_mb(spec: ModelSpec) -> float:
    model = ModelFolder.of(spec)
    folders = [model.weights_dir, *model.path.glob("*_Dense")]  # linear layers of sentence-transformers
    return sum(map(_bytes_of_weights, folders)) / _MB


def _bytes_of_weights(folder: Path) -> int:
    for pattern in _WEIGHTS:
        if files := list(folder.glob(pattern)):
            return sum(path.stat().st_size for path in files)
    return 0
