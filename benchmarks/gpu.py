"""Compares ways of encoding on one GPU: dtypes, an older version, with and without CUDA graphs, two workers.

    python -m benchmarks.gpu [--shape minilm|base|demo] [--before FOLDER] [--rounds 3] [--texts 4096]
        [--only WORD ...]

Each way runs in a process of its own, and they take turns; each figure is the median of all rounds. The column
"without tokenizing" is the rate for tokenized texts. The last two columns are the largest differences of vectors:
from those of the plain encoder, and between a text alone and the same text among others.

--before: a checkout of an older version (git worktree add FOLDER COMMIT), measured as one more way. --only:
measure only the ways whose name contains one of these words. The shapes minilm and base have random weights; the
words of the texts are their vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bert_serving.server.model.demo import find_demo_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.common import seconds
from benchmarks.device import device_name
from benchmarks.gpu_ways import WAYS
from tests.support.sentences import sentences

_ROOT = Path(__file__).parents[1]
_SHAPES = {
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}


def save_random_model(folder: Path, shape: str) -> Path:
    """Write a sentence-transformers folder of this shape, with random weights, and return it."""
    torch.manual_seed(0)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words = sorted({word for text in sentences(8192) for word, _ in split(text.lower())})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*specials, *words[:30000]]))}
    config = BertConfig(vocab_size=30522, **_SHAPES[shape])
    BertModel(config).save_pretrained(folder / "body")
    tokenizer = BertTokenizerFast(vocab=vocabulary, model_max_length=512)
    tokenizer.save_pretrained(folder / "body")
    body = Transformer(str(folder / "body"), max_seq_length=256)
    modules = [body, Pooling(config.hidden_size), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


class Child:
    """A process that runs one way. tree: the checkout whose encoder it runs."""

    def __init__(self, name: str, dtype: str, folder: Path, tree: Path, args: argparse.Namespace) -> None:
        paths = [str(tree / "server"), str(tree / "client"), str(_ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_ways", name, dtype, folder, args.device, str(args.texts)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        self.differences: dict[str, float] = {}

    def send(self, command: str) -> None:
        """Send a command; `answer` waits for its answer."""
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Return what the process reports. Raises RuntimeError with its message if it failed."""
        assert self._process.stdout is not None
        line = next((line for line in self._process.stdout if line.startswith("@")), '@{"error": "it ended"}')
        answer: dict[str, Any] = json.loads(line[1:])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def why_not_ready(self) -> str | None:
        """Return None when the process is warm, or why it failed."""
        try:
            self.differences = self.answer()["differences"]
        except RuntimeError as exc:
            return str(exc)
        return None

    def ask(self, command: str) -> list[float]:
        """Return the seconds that a command takes."""
        self.send(command)
        return list(self.answer()["seconds"])

    def stop(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def planned(args: argparse.Namespace) -> dict[str, tuple[str, str, Path]]:
    """Return the ways to measure: (name for benchmarks.gpu_ways, dtype, checkout) by the name in the table."""
    ways: dict[str, tuple[str, str, Path]] = {}
    for dtype in ("float16", "bfloat16"):
        ways[f"sentence-transformers, {dtype}"] = ("sentence-transformers", dtype, _ROOT)
        if args.before is not None:
            ways[f"encoder before, {dtype}"] = ("encoder", dtype, args.before.absolute())
        ways[f"encoder, {dtype}"] = ("encoder", dtype, _ROOT)
    for way in WAYS:
        if way != "encoder":
            ways[f"{way}, float16"] = (way, "float16", _ROOT)
    return {name: way for name, way in ways.items() if not args.only or any(word in name for word in args.only)}


def measure(children: dict[str, Child], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds by way and by command. In every second round, the order of the ways is reversed."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in children}
    for i in range(rounds):
        for name in list(children)[:: 1 if i % 2 == 0 else -1]:
            for command in ("bulk 0 1", "forward", "single"):
                found[name].setdefault(command.split()[0], []).extend(children[name].ask(command))
    return found


def two_workers(children: Sequence[Child], rounds: int) -> tuple[float, float]:
    """Return the seconds of one process for all texts, and of two processes for a half each at the same time."""

    def both() -> None:
        for i, child in enumerate(children):
            child.send(f"bulk {i} 2")
        for child in children:
            child.answer()

    both()
    times = [(seconds(lambda: children[0].ask("bulk 0 1")), seconds(both)) for _ in range(rounds)]
    return statistics.median(one for one, _ in times), statistics.median(two for _, two in times)


def print_table(children: dict[str, Child], found: dict[str, dict[str, list[float]]], num_texts: int) -> None:
    """Print a line for each way."""

    def rate(times: list[float]) -> str:
        return f"{num_texts / statistics.median(times):.0f}" if times else ""

    print("| way | sentences/s | without tokenizing | one sentence, ms | its 90 % | from plain | alone |")
    print("|---|---|---|---|---|---|---|")
    for name, times in found.items():
        single = [1000 * time for time in times["single"]]
        p90 = statistics.quantiles(single, n=10)[-1]
        rates = f"{rate(times['bulk'])} | {rate(times['forward'])}"
        differences = " | ".join(
            f"{children[name].differences.get(key, 0):.1g}" for key in ("from_plain", "alone")
        )
        print(f"| {name} | {rates} | {statistics.median(single):.2f} | {p90:.2f} | {differences} |")


def main() -> None:
    """Measure all ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["minilm", "base", "demo"], default="minilm")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = find_demo_model() if args.shape == "demo" else save_random_model(Path(scratch), args.shape)
        ways = planned(args)
        children = {name: Child(kind, dtype, folder, tree, args) for name, (kind, dtype, tree) in ways.items()}
        failures = {name: child.why_not_ready() for name, child in children.items()}
        working = {name: child for name, child in children.items() if failures[name] is None}
        print(f"{device_name(torch.device(args.device))}, torch {torch.__version__}, shape {args.shape}; ", end="")
        print(f"{args.texts} sentences, median of {args.rounds} rounds in alternation\n")
        print_table(working, measure(working, args.rounds), args.texts)
        for name, why in failures.items():
            if why is not None:
                print(f"\n{name}: {why}")
        if "encoder, float16" in working:
            second = Child("encoder", "float16", folder, _ROOT, args)
            assert second.why_not_ready() is None
            one, two = two_workers([working["encoder, float16"], second], args.rounds)
            print(
                f"\ntwo processes on one device: {args.texts / two:.0f} sentences/s, one: {args.texts / one:.0f}"
            )
            second.stop()
        for child in children.values():
            child.stop()


if __name__ == "__main__":
    main()
