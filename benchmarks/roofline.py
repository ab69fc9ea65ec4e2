"""Compares the encoder with the device's peak rates, for several sequence lengths and batch sizes.

    python -m benchmarks.roofline [--shape base|minilm] [--device cpu|cuda:0] [--seconds 1]

It needs no network: the model has the shape of BERT-base or MiniLM, and its weights and the token ids are random.
It prints the rates of the device for matrix products and for copying. For each dtype, length and batch size it
prints tokens/s, and the time of the matrix products alone as a fraction of the whole time. It also prints the rate
of the tokenizer alone, and a profile of a batch of mixed lengths.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bert_serving.server import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from bert_serving.server.worker.sequences import TokenizedText, TokenSequence
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from benchmarks.device import Shape, device_name, device_seconds, matmul_seconds
from tests.support.sentences import sentences
from tests.support.tiny_models import make_tokenizer

SHAPES = {"base": Shape(768, 3072, 12), "minilm": Shape(384, 1536, 6)}
LENGTHS = (16, 64, 128, 512)
BATCHES = {"cpu": (1, 8, 64), "cuda": (1, 8, 64, 512)}
MAX_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 17}  # limit of one measurement
COPY_BYTES = 256 << 20


def save_model(folder: Path, shape: Shape) -> Path:
    """Write a BERT of this shape, with random weights, to the folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers}
    BertModel(BertConfig(**sizes, num_attention_heads=12)).save_pretrained(folder)
    make_tokenizer(0).save_pretrained(folder)
    return folder


def random_tasks(encoder: Encoder, lengths: list[int]) -> list[PreparedText]:
    """Return prepared texts with these numbers of tokens and random ids."""
    rng = random.Random(0)
    plan = encoder._loaded.planner.default
    texts = [TokenSequence([rng.randrange(5, 20_000) for _ in range(n)], (0, n)) for n in lengths]
    return [PreparedText(TokenizedText((sequence,)), plan) for sequence in texts]


def rate(run: Callable[[], object], device: torch.device, limit_s: float) -> float:
    """Return the median duration of a run in seconds. Repeats the run for about limit_s seconds."""
    run()
    times: list[float] = []
    end = time.perf_counter() + limit_s
    while len(times) < 3 or time.perf_counter() < end:
        times.append(device_seconds(run, device))
    return statistics.median(times)


def copy_rate(device: torch.device, limit_s: float) -> float:
    """Return the bytes/s of a copy. Bytes read and bytes written both count."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / rate(partial(target.copy_, source), device, limit_s)


def measure(folder: Path, shape: Shape, name: str, device: torch.device, limit_s: float) -> None:
    """Print the table and the profile of one dtype."""
    encoder = Encoder(folder, dtype=name, device=str(device), pooling_layer=[-1])
    dtype: torch.dtype = getattr(torch, name)
    per_token = matmul_seconds(dtype, 1, shape, device)
    flops = 2 * shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.inner)
    print(f"\n{name}: matrix products at {flops / per_token / 1e12:.2f} TFLOP/s; ", end="")
    print("packed" if encoder.padded_because is None else f"padded: {encoder.padded_because}", end="\n\n")
    print("| tokens | sequences | tokens/s | of the bound |")
    print("|---|---|---|---|")
    rng = random.Random(1)
    mixed = [min(512, max(4, round(rng.lognormvariate(3.2, 0.8)))) for _ in range(1024)]
    sizes = [([n] * b, str(n)) for n in LENGTHS for b in BATCHES[device.type] if n * b <= MAX_TOKENS[device.type]]
    for lengths, label in [*sizes, (mixed, "mixed")]:
        tasks = random_tasks(encoder, lengths)
        took = rate(partial(encoder.forward, tasks), device, limit_s)
        num_tokens = sum(lengths)
        bound = per_token * num_tokens / took
        print(f"| {label} | {len(lengths)} | {num_tokens / took:.0f} | {bound:.0%} |")
    tasks = random_tasks(encoder, mixed)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        encoder.forward(tasks)
    key = f"self_{device.type}_time_total" if device.type == "cpu" else "self_device_time_total"
    print(f"\nprofile of the mixed batch ({name}):\n")
    print(profiled.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=50))


def main() -> None:
    """Print the device's rates, then a table for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each measurement")
    args = parser.parse_args()
    device, shape = torch.device(args.device), SHAPES[args.shape]
    dtypes = ["float16", "bfloat16"] if device.type == "cuda" else ["float32", "bfloat16"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_model(Path(scratch), shape)
        print(f"{device_name(device)}, torch {torch.__version__}, {args.shape}: {shape}")
        print(f"copying at {copy_rate(device, args.seconds) / 1e9:.0f} GB/s, read and written")
        texts = sentences(1024)
        encoder = Encoder(folder, device="cpu", dtype="float32", pooling_layer=[-1])
        took = rate(partial(encoder.prepare, texts), torch.device("cpu"), args.seconds)
        print(f"tokenizing alone: {len(texts) / took:.0f} sentences/s")
        for name in dtypes:
            measure(folder, shape, name, device, args.seconds)


if __name__ == "__main__":
    main()
