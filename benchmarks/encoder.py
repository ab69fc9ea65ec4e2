"""How fast the encoder is, beside sentence-transformers, padded Transformers and the machine itself.

    python benchmarks/encoder.py [--rounds 3] [--texts 1024]

Every way encodes the same sentences of mixed natural length in one process, in alternation; each figure is
the median of the rounds. The bound is what this machine needs for the model's matrix products alone, at the
rate that it reaches on matrices of the same shapes, in the same dtype.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from bert_serving.server import Encoder
from bert_serving.server.model_files import find_demo_model
from sentence_transformers import SentenceTransformer
from sentences import sentences
from transformers import AutoModel, AutoTokenizer

ROW_TOKENS = 2048  # the encoder's micro-batch on a CPU


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def matmul_seconds(dtype: torch.dtype, num_tokens: int, *, hidden: int, inner: int, layers: int) -> float:
    """Return the time of the model's matrix products for so many tokens, at this machine's own rate."""
    total = 0.0
    for width_in, width_out, count in ((hidden, hidden, 4), (hidden, inner, 1), (inner, hidden, 1)):
        x, weight = torch.randn(ROW_TOKENS, width_in, dtype=dtype), torch.randn(width_out, width_in, dtype=dtype)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            times.append(time.perf_counter() - start)
        total += min(times) * count
    return total * layers * num_tokens / ROW_TOKENS


def padded_transformers(folder: Path) -> Callable[[list[str]], object]:
    """Transformers as its users write it: sorted by length, batches of 32, mean pooling."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def run(texts: list[str]) -> None:
        texts = sorted(texts, key=len)
        for i in range(0, len(texts), 32):
            inputs = tokenizer(
                texts[i : i + 32], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1024)
    args = parser.parse_args()

    folder = find_demo_model()
    texts = sentences(args.texts)
    float32, bfloat16 = (
        Encoder(folder, dtype="float32", device="cpu"),
        Encoder(folder, dtype="bfloat16", device="cpu"),
    )
    reference = SentenceTransformer(str(folder), device="cpu")
    reference16 = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    transformers = padded_transformers(folder)
    ways: dict[str, Callable[[list[str]], object]] = {
        "sentence-transformers, float32 (its default)": reference.encode,
        "sentence-transformers, bfloat16": reference16.encode,
        "Transformers, padded and sorted, float32": transformers,
        f"this encoder, float32, {'packed' if float32.padded_because is None else 'padded'}": float32.encode,
        f"this encoder, bfloat16, {'packed' if bfloat16.padded_because is None else 'padded'}": bfloat16.encode,
    }
    num_tokens = sum(len(t.ids) for t in float32.tokenize(texts))
    shape = {"hidden": 384, "inner": 1536, "layers": 6}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    bounds: dict[str, list[float]] = {name: [] for name in dtypes}
    times: dict[str, list[float]] = {name: [] for name in ways}
    single: dict[str, list[float]] = {name: [] for name in ways}
    short = [text for text in texts if 40 <= len(text) <= 120][:32]
    for run in ways.values():
        run(texts[:64])
    for _ in range(args.rounds):
        for name, run in ways.items():
            times[name].append(seconds(lambda run=run: run(texts)))  # type: ignore[misc]
            single[name] += [seconds(lambda run=run, text=text: run([text])) for text in short]  # type: ignore[misc]
        for name, dtype in dtypes.items():
            bounds[name].append(matmul_seconds(dtype, num_tokens, **shape))

    print(f"{cpu_name()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{len(texts)} sentences, {num_tokens / len(texts):.1f} tokens each in the mean; ", end="")
    print(f"median of {args.rounds} rounds in alternation\n")
    print("| way | sentences/s | tokens/s | to the first | of the bound | one sentence, ms |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(times[next(iter(ways))])
    for name in ways:
        took = statistics.median(times[name])
        bound = statistics.median(bounds["bfloat16" if "bfloat16" in name else "float32"])
        rates = f"{len(texts) / took:.0f} | {num_tokens / took:.0f} | {base / took:.2f} | {bound / took:.0%}"
        print(f"| {name} | {rates} | {statistics.median(single[name]) * 1000:.1f} |")


if __name__ == "__main__":
    main()
