"""Loads the model as a worker would, and measures it for some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from ..server.model.spec import ModelSpec
from ..server.worker.device import pick_device
from ..server.worker.encoder import Encoder
from ..server.worker.sequences import RequestError

_BULK = 256  # texts of a request
_WORDS = ("a", "service", "for", "vectors", "of", "sentences", "that", "machines", "and", "people", "can", "read")
_ONE_S = 2.0  # of the time that is measured, for single texts
_WARM_UP = 3
_ENOUGH = 100  # calls, for a time that 99 of 100 do not reach


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a GPU, in bytes. free: before the model was loaded. used: the most that a worker needed."""

    total: int
    free: int
    used: int


@dataclass(frozen=True)
class Measured:
    """A model that was loaded. Memory in bytes: of the process, with torch. gpu: None on a CPU.

    texts_per_s, tokens_per_s: of requests of 256 texts of 5 to 40 words. one_text: a text of 12 words, alone.
    """

    device: str
    dtype: str
    forward_kind: str
    padded_because: str | None
    kind: str
    dimension: int
    max_seq_len: int
    parity: float
    load_s: float
    memory: int
    gpu: GpuMemory | None
    texts_per_s: float
    tokens_per_s: float
    one_text: OneText


@dataclass(frozen=True)
class OneText:
    """The times of single texts, in milliseconds. p99_ms: None if there were too few calls for it."""

    calls: int
    median_ms: float
    p99_ms: float | None
    max_ms: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> OneText:
        """Return the figures of these times in seconds, one for each call."""
        times_ms = 1000 * np.array(times_s)
        p99 = float(np.quantile(times_ms, 0.99)) if len(times_s) >= _ENOUGH else None
        return cls(len(times_s), float(np.median(times_ms)), p99, float(times_ms.max()))


def measure(spec: ModelSpec, num_threads: int, seconds: float, say: Callable[[str], None]) -> Measured:
    """Return the figures of a model. say: is called with lines for the user. Raises ModelError."""
    torch.set_num_threads(num_threads)
    say("loading the model")
    gpu_before = gpu_memory(pick_device(spec.device))
    start = time.perf_counter()
    encoder = Encoder.from_spec(spec)
    load_s = time.perf_counter() - start
    if encoder.compiles_later:
        say("compiling its forward pass, which a server does while it serves")
        encoder.compile()
    say(f"measuring for {seconds:g} s")
    one = " ".join(_WORDS)
    single = _times(lambda: encoder.encode([one]), min(_ONE_S, seconds / 3))
    texts = texts_of(_BULK)
    num_tokens = sum(each.text.num_tokens for each in encoder.prepare(texts) if not isinstance(each, RequestError))
    bulk = float(np.median(_times(lambda: encoder.encode(texts), seconds - min(_ONE_S, seconds / 3))))
    return Measured(
        device=str(encoder.device),
        dtype=encoder.dtype_name,
        forward_kind=encoder.forward_kind,
        padded_because=encoder.padded_because,
        kind=encoder.kind,
        dimension=encoder.dimension,
        max_seq_len=encoder.max_seq_len,
        parity=encoder.parity,
        load_s=load_s,
        memory=psutil.Process().memory_info().rss,
        gpu=gpu_before and replace(gpu_before, used=torch.cuda.max_memory_reserved(encoder.device)),
        texts_per_s=_BULK / bulk,
        tokens_per_s=num_tokens / bulk,
        one_text=OneText.of(single),
    )


def gpu_memory(device: torch.device) -> GpuMemory | None:
    """Return the memory of a GPU on which no model was loaded yet; None for a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return GpuMemory(total=total, free=free, used=0)


def texts_of(count: int) -> list[str]:
    """Return texts of 5 to 40 words, always the same ones."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(_WORDS, rng.integers(5, 41))) for _ in range(count)]


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Return the seconds of each call, of as many as fit; at least three."""
    for _ in range(_WARM_UP):
        call()
    found: list[float] = []
    while sum(found) < seconds or len(found) < 3:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found
