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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.common import seconds
from tests.support.sentences import sentences

if TYPE_CHECKING:
    from bert_serving.server import Encoder

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

        encoder = Encoder(folder, dtype=dtype, device=device)
        plain = encoder.encode(self.short)
        VARIATIONS[name](encoder)
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


def without_num_splits(encoder: Encoder) -> None:
    """Let the attention kernel choose how it splits a sequence."""
    from bert_serving.server.worker import attention

    if not attention._takes_num_splits():
        raise RuntimeError(f"varlen_attn of PyTorch {torch.__version__} has no num_splits")
    attention._takes_num_splits = lambda: False  # type: ignore[assignment]


def with_cuda_graphs(encoder: Encoder) -> None:
    """Replay CUDA graphs for small rows."""
    from benchmarks.small_rows import SIZES, SmallRows, graphed

    SmallRows(encoder._loaded.transformer, graphed, SIZES)


def compiled_small(encoder: Encoder) -> None:
    """Compile the model for rows of 32 and of 64 tokens, with CUDA graphs by torch.compile."""
    from benchmarks.small_rows import SmallRows

    _let_attention_be_traced()
    SmallRows(
        encoder._loaded.transformer,
        lambda forward, example: torch.compile(forward, mode="reduce-overhead", dynamic=False),
        (32, 64),
    )


def compiled_every_row(encoder: Encoder, *, mode: str) -> None:
    """Compile the model for rows of any number of tokens."""
    from bert_serving.server.worker import attention, packing, transfers

    from benchmarks.small_rows import plain_forward

    _let_attention_be_traced()
    transformer = encoder._loaded.transformer
    plain, top = transformer._packed, transformer.num_layers - 1
    compiled = torch.compile(plain_forward(transformer, encoder.max_seq_len), mode=mode, dynamic=True)

    def run(sequences: Any, layers: Any, arrays: Any) -> Any:
        if layers != {top}:
            return plain(sequences, layers, arrays)
        lengths = [len(s.ids) for s in sequences]
        ids = np.concatenate([s.ids for s in sequences])[None]
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        types = np.concatenate([s.type_ids or [0] * len(s.ids) for s in sequences])[None]
        stops = attention.cumulative_lengths(packing.groups_of(lengths))
        host = [ids, positions + transformer._inputs.first_position, types, stops, *arrays]
        moved = transfers.to_device(host, transformer.device)
        return {top: compiled(*moved[:4])[0]}, moved[4:]

    transformer._packed = run  # type: ignore[method-assign]


class _Row:
    """What attention.PackedRow is, in a form that torch.compile can trace."""

    def __init__(self, groups: Any, visible: Any = None, cu_seqlens: Any = None) -> None:
        self.groups, self.visible, self.cu_seqlens = groups, visible, cu_seqlens


class _CurrentRow:
    """What the context variable of attention is, in a form that torch.compile can trace."""

    def __init__(self) -> None:
        self.row: _Row | None = None

    def get(self) -> _Row | None:
        return self.row


_current_row = _CurrentRow()


class _Entered:
    """What attention.packed_row is, in a form that torch.compile can trace."""

    def __init__(self, row: _Row) -> None:
        _current_row.row = row

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _let_attention_be_traced() -> None:
    """Replace what torch.compile cannot trace: the context variable, and a look at a function's signature."""
    from bert_serving.server.worker import attention

    replaced: Any = attention
    takes = attention._takes_num_splits()
    replaced._takes_num_splits = lambda: takes
    replaced._current_row, replaced.packed_row, replaced.PackedRow = _current_row, _Entered, _Row


VARIATIONS: dict[str, Callable[[Encoder], None]] = {
    "encoder": lambda encoder: None,
    "num_splits chosen by the kernel": without_num_splits,
    "CUDA graphs": with_cuda_graphs,
    "compiled small rows, reduce-overhead": compiled_small,
    "compiled rows, default": partial(compiled_every_row, mode="default"),
    "compiled rows, max-autotune-no-cudagraphs": partial(compiled_every_row, mode="max-autotune-no-cudagraphs"),
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
