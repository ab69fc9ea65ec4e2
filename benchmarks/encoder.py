"""Compares the encoder with sentence-transformers, with padded Transformers and with the machine's peak rate.

    python -m benchmarks.encoder [--rounds 3] [--texts 1024] [--shape demo|base] [--device cpu|cuda:0]

Each way of encoding gets the same sentences, whose lengths differ as in natural text. All ways run in one process
and take turns; each figure is the median of the rounds. The column "of the bound" is the time of the model's
matrix products alone, as a fraction of the measured time. The bound is the shortest time of these products
with the same shapes and dtype. They are computed with PyTorch's plain product and, on a CPU, also with
oneDNN's product and prepacked weights. --shape base uses a model with the shape of BERT-base and random weights.
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
from bert_serving.server.model.demo import find_demo_model
from bert_serving.server.worker.micro_batches import PreparedText
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.arena.random_models import save_bert_base
from benchmarks.device import Shape, device_name, device_seconds, matmul_seconds
from tests.support.sentences import sentences

Way = Callable[[list[str]], object]

SINGLE_CHARS = range(40, 121)  # the lengths, in characters, of sentences that are also timed one by one


def padded_transformers(folder: Path, device: torch.device) -> Way:
    """Return what many programs do: plain Transformers, texts sorted by length, batches of 32, mean pooling."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval().to(device)

    @torch.inference_mode()
    def run(texts: list[str]) -> None:
        texts = sorted(texts, key=len)
        for i in range(0, len(texts), 32):
            inputs = tokenizer(
                texts[i : i + 32], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(device)
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).cpu()

    return run


def compare(folder: Path, texts: list[str], rounds: int, device: torch.device) -> None:
    """Measure every way and print the table."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device.type == "cuda":
        dtypes["float16"] = torch.float16
    ways: dict[str, Way] = {}
    for name, dtype in dtypes.items():
        reference = SentenceTransformer(str(folder), device=str(device), model_kwargs={"dtype": dtype})
        ways[f"sentence-transformers, {name}"] = reference.encode
    ways["Transformers, padded and sorted, float32"] = padded_transformers(folder, device)
    encoders = {name: Encoder(folder, dtype=name, device=str(device)) for name in dtypes}
    for name, encoder in encoders.items():
        ways[f"this encoder, {name}, {'packed' if encoder.padded_because is None else 'padded'}"] = encoder.encode

    tasks = encoders["float32"].prepare(texts)
    num_tokens = sum(task.text.num_tokens for task in tasks if isinstance(task, PreparedText))
    config = AutoConfig.from_pretrained(folder)
    shape = Shape(config.hidden_size, config.intermediate_size, config.num_hidden_layers)
    bounds: dict[str, list[float]] = {name: [] for name in dtypes}
    times: dict[str, list[float]] = {name: [] for name in ways}
    single: dict[str, list[float]] = {name: [] for name in ways}
    short = [text for text in texts if len(text) in SINGLE_CHARS][:32]
    for run in ways.values():
        run(texts[:64])
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(device_seconds(partial(run, texts), device))
            single[name] += [device_seconds(partial(run, [text]), device) for text in short]
        for name, dtype in dtypes.items():
            bounds[name].append(matmul_seconds(dtype, num_tokens, shape, device))

    print(f"{device_name(device)}, torch {torch.__version__}")
    print(f"{shape.layers} layers of {shape.hidden} and {shape.inner}; ", end="")
    print(f"{len(texts)} sentences, {num_tokens / len(texts):.1f} tokens each on average; ", end="")
    print(f"median of {rounds} rounds in alternation\n")
    print("| way | sentences/s | tokens/s | speed-up | of the bound | one sentence, ms | relative time |")
    print("|---|---|---|---|---|---|---|")
    first = next(iter(ways))
    base, base_single = statistics.median(times[first]), statistics.median(single[first])
    for name in ways:
        took, alone = statistics.median(times[name]), statistics.median(single[name])
        bound = statistics.median(bounds[next(dtype for dtype in dtypes if dtype in name)])
        rates = f"{len(texts) / took:.0f} | {num_tokens / took:.0f} | {base / took:.2f} | {bound / took:.0%}"
        print(f"| {name} | {rates} | {alone * 1000:.1f} | {alone / base_single:.2f} |")


def main() -> None:
    """Print the table for the shape that is given on the command line."""
    transformers_logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--shape", choices=["demo", "base"], default="demo")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = find_demo_model() if args.shape == "demo" else save_bert_base(Path(scratch))
        compare(folder, sentences(args.texts), args.rounds, torch.device(args.device))


if __name__ == "__main__":
    main()
