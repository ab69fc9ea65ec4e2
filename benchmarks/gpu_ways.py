"""One way of encoding on a GPU, in a process of its own, for benchmarks/gpu.py.

It reads commands from its input, and answers each with one line that begins with @ and is JSON: {"seconds": [...]}
or {"error": "..."}. The first line is {"differences": {...}}, the largest difference of the vectors of its single
sentences: from those of the plain encoder ("from_plain"), and between one call and one call for each ("alone").
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import seconds
from tests.support.sentences import sentences

SINGLE_CHARS = range(40, 121)  # the lengths, in characters, of sentences that are timed one by one
_NUM_SINGLE = 64
_MIN_COSINE = 0.999


class Way:
    """What the commands call: `encode` for texts, `forward` for texts that are tokenized."""

    def __init__(self, name: str, dtype: str, folder: Path, device: str, num_texts: int) -> None:
        self.texts = sentences(num_texts)
        self.short = [text for text in sentences(1024) if len(text) in SINGLE_CHARS][:_NUM_SINGLE]
        self.forward: Callable[[], object] | None = None
        self.differences: dict[str, float] = {}
        if name == "sentence-transformers":
            from sentence_transformers import SentenceTransformer

            kwargs = {"dtype": getattr(torch, dtype)}
            self.encode: Callable[[list[str]], object] = SentenceTransformer(
                str(folder), device=device, model_kwargs=kwargs
            ).encode
            return
        from bert_serving.server import Encoder

        options = {"dtype": dtype, "device": device}
        plain = Encoder(folder, compile="off", **options).encode(self.short)  # type: ignore[arg-type]
        WAYS[name]()
        encoder = Encoder(folder, compile="off" if name == PLAIN else "auto", **options)  # type: ignore[arg-type]
        alone = np.concatenate([encoder.encode([text]) for text in self.short])
        self.differences = {
            "from_plain": float(np.abs(encoder.encode(self.short) - plain).max()),
            "alone": float(np.abs(encoder.encode(self.short) - alone).max()),
        }
        if not float((alone * plain).sum(1).min()) > _MIN_COSINE:
            raise RuntimeError(f"the vectors are wrong: {self.differences}")
        prepared = encoder.prepare(self.texts)
        self.encode, self.forward = encoder.encode, partial(encoder.forward, prepared)  # type: ignore[arg-type]

    def run(self, command: str, *args: int) -> list[float]:
        """Return the seconds of one command: bulk I N (every Nth text from the Ith), forward or single."""
        if command == "bulk":
            start, step = args
            return [seconds(lambda: self.encode(self.texts[start::step]))]
        if command == "forward":
            return [] if self.forward is None else [seconds(self.forward)]
        return [seconds(partial(self.encode, [text])) for text in self.short]


def unchanged() -> None:
    """Do nothing."""


def without_num_splits() -> None:
    """Let the attention kernel choose how it splits a sequence."""
    from bert_serving.server.worker import attention

    if not attention._takes_num_splits():
        raise RuntimeError(f"varlen_attn of PyTorch {torch.__version__} has no num_splits")
    attention._takes_num_splits = lambda: False  # type: ignore[assignment]


PLAIN = "encoder without CUDA graphs"
#: What is done before an encoder is made, by the name of the way.
WAYS: dict[str, Callable[[], None]] = {
    "encoder": unchanged,
    PLAIN: unchanged,
    "num_splits chosen by the kernel": without_num_splits,
}


def main() -> None:
    """Load the way that the command line names, warm it up, and answer commands."""
    name, dtype, folder, device, num_texts = sys.argv[1:]
    answers = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):  # libraries print
        try:
            way = Way(name, dtype, Path(folder), device, int(num_texts))
            way.encode(way.texts[:256])
            way.run("forward")
            for _ in range(2):
                way.run("single")
            answer: dict[str, object] = {"differences": way.differences}
        except Exception as exc:  # whatever the libraries raise is a line of the report
            answer = {"error": f"{type(exc).__name__}: {exc}"[:300]}
        print("@" + json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return
        for line in sys.stdin:
            command, *args = line.split()
            print("@" + json.dumps({"seconds": way.run(command, *map(int, args))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
