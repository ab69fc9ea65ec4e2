"""Measures bert-serving-encode: its memory over a large file, and its rate beside that of the encoder.

    python -m benchmarks.encode_files [--lines 5000000] [--texts 80000] [--rounds 3] [--only memory|rate]

Memory: a file of many short lines, and a tiny model with random weights, because only the number of lines
matters; the resident memory of the process in the first tenth of the lines, and its peak. Rate: the demo model and
sentences of mixed length, in five windows of almost the usual size, in alternation with `Encoder.encode` in this
process, both compiled. The first window of a run does not count, because the program starts before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from bert_serving.server import Encoder

from benchmarks.common import cpu_name
from tests.support.sentences import sentences
from tests.support.tiny_models import make_model

_PROGRAM = [sys.executable, "-c", "import sys; from bert_serving.server.cli import encode; sys.exit(encode())"]
_POLL_S = 0.05


def memory_of(lines: int, model: Path, folder: Path, *, window: int = 16_384) -> tuple[int, int]:
    """Encode a file of so many lines; return the peak of the MB in memory in the first tenth, and of all."""
    source, output = folder / "lines.txt", folder / "vectors.npy"
    with source.open("w") as file:
        file.writelines(f"line number {i}\n" for i in range(lines))
    words = [source, "-o", output, "-model_dir", model, "-compile", "off", "-window", window, "-precision", "int8"]
    with subprocess.Popen([*_PROGRAM, *map(str, words)], stderr=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        early, peak, is_early = 0, 0, True
        while process.poll() is None:
            done = _rows_done(output)
            # Without pages of files that are mapped into memory: the system takes them back when it needs them.
            memory = watched.memory_info()
            own = memory.rss - memory.shared
            if is_early:
                early = max(early, own)
            is_early = is_early and done < lines // 10  # so the first value after the first tenth counts too
            peak = max(peak, own)
            time.sleep(_POLL_S)
    if process.returncode != 0:
        raise RuntimeError(f"bert-serving-encode has ended with {process.returncode}")
    return early >> 20, peak >> 20


def _rows_done(output: Path) -> int:
    try:
        return int(json.loads((output.with_name(f"{output.name}.parts") / "manifest.json").read_text())["rows"])
    except FileNotFoundError:  # before the first window, or after the last one
        return 0 if not output.exists() else sys.maxsize


def rates(texts: Sequence[str], folder: Path, rounds: int) -> list[tuple[float, float]]:
    """Return the texts each second of bert-serving-encode and of Encoder.encode, for each round."""
    source = folder / "texts.txt"
    source.write_text("\n".join(texts))
    encoder = Encoder(compile="wait")
    window = len(texts) // 5
    found = []
    for number in range(rounds):
        output = folder / f"rate-{number}.npy"
        words = [*_PROGRAM, str(source), "-o", str(output), "-window", str(window), "-compile", "wait"]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
            began = None
            while process.poll() is None:
                if began is None and _rows_done(output) >= window:
                    began = time.monotonic()
                time.sleep(0.005)
            assert began is not None
            ours = (len(texts) - window) / (time.monotonic() - began)
        start = time.monotonic()
        for i in range(window, len(texts), window):
            encoder.encode(texts[i : i + window], pairs=False)
        found.append((ours, (len(texts) - window) / (time.monotonic() - start)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--texts", type=int, default=80_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["memory", "rate"])
    args = parser.parse_args(argv)
    print(cpu_name())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only != "rate":
            early, peak = memory_of(args.lines, make_model(folder / "tiny", "bert"), folder)
            print(f"{args.lines:,} lines: at most {early} MB in the first tenth of them, and {peak} MB in all")
        if args.only != "memory":
            texts = [" ".join(text.split()) for text in sentences(args.texts)]
            found = rates(texts, folder, args.rounds)
            for ours, alone in found:
                print(f"{ours:.0f} texts/s; Encoder.encode {alone:.0f}; ratio {ours / alone:.3f}")
            print(f"median ratio {statistics.median(ours / alone for ours, alone in found):.3f}")


if __name__ == "__main__":
    main()
