"""Measures for which numbers of tokens a CUDA graph is faster than the same pass without one.

    python -m benchmarks.cuda_graphs [--shape minilm|base] [--dtype float16] [--device cuda:0] [--rounds 5]

For each number of tokens it prints the median time of a pass over sentences of 28 tokens, from token ids to
vectors, in two encoders that take turns, and the median time that the GPU needs for the hidden states. The model
has random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bert_serving.server import Encoder
from bert_serving.server.worker.micro_batches import PreparedText

from benchmarks.common import seconds
from benchmarks.device import device_name
from benchmarks.roofline import SHAPES, random_tasks, save_model

_SENTENCE = 28  # tokens
_TOKENS = (16, 28, 56, 112, 224, 448, 896, 1792, 3584, 7168, 14336)
_RUNS = 20


def lengths_of(num_tokens: int) -> list[int]:
    """Return the numbers of tokens of sentences that have this many together."""
    return [_SENTENCE] * (num_tokens // _SENTENCE) or [num_tokens]


def gpu_seconds(run: Callable[[], object]) -> float:
    """Return how long the GPU needs for what a call asks of it, without waiting for the host."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # until then, the host has asked for all
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_model(Path(scratch), SHAPES[args.shape])
        start = seconds(partial(torch.zeros, 1, device=args.device))  # CUDA itself
        encoders, loading = {}, {}
        for name, compile_ in (("without", "off"), ("graphs", "auto")):

            def load(compile_: str = compile_) -> Encoder:
                return Encoder(folder, dtype=args.dtype, device=args.device, compile=compile_, pooling_layer=[-1])

            load()
            loading[name] = min(seconds(load) for _ in range(2))
            encoders[name] = load()
        assert encoders["graphs"].forward_kind == "cuda-graphs"
    print(f"{device_name(torch.device(args.device))}, torch {torch.__version__}, {args.shape}, {args.dtype}")
    times_s = f"{loading['without']:.2f} s, with graphs {loading['graphs']:.2f} s"
    print(f"CUDA starts in {start:.2f} s; loading: {times_s}")
    print("\n| tokens | without, ms | graph, ms | without / graph | of it on the GPU: without, ms | graph, ms |")
    print("|---|---|---|---|---|---|")
    for num_tokens in _TOKENS:
        prepared: list[PreparedText] = random_tasks(encoders["graphs"], lengths_of(num_tokens))
        times: dict[str, list[float]] = {name: [] for name in encoders}
        on_gpu: dict[str, list[float]] = {name: [] for name in encoders}
        for i in range(args.rounds):
            for name in list(encoders)[:: 1 if i % 2 == 0 else -1]:
                run = partial(encoders[name].forward, prepared)
                run()
                times[name] += [seconds(run) for _ in range(_RUNS)]
                hidden = partial(
                    encoders[name]._loaded.transformer.hidden,
                    [text.text.sequences[0] for text in prepared],
                    encoders[name]._loaded.check.layers,
                )
                on_gpu[name].append(gpu_seconds(hidden))
        plain, graph = (1000 * statistics.median(each) for each in times.values())
        gpu = " | ".join(f"{1000 * statistics.median(each):.3f}" for each in on_gpu.values())
        print(f"| {num_tokens} | {plain:.3f} | {graph:.3f} | {plain / graph:.2f} | {gpu} |")


if __name__ == "__main__":
    main()
