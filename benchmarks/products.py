"""Measures the products of compiled passes, beside PyTorch's own in float32 (oneDNN).

    python -m benchmarks.products [--threads 1 2] [--rows 28 1024] [--rounds 15]

The sizes are those of the demo model: queries, keys and values; the two layers of the feed-forward block. Each
figure is the best of all rounds, in 10^9 operations a second; a multiplication and an addition are two. The code
of the operators is compiled first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bert_serving.server.worker.compiled import operators
from bert_serving.server.worker.compiled.packed_weights import to_dtype, to_int8
from bert_serving.server.worker.linear import PrepackedLinear

from benchmarks.common import seconds
from benchmarks.device import device_name

_SIZES = [(384, 1152), (384, 1536), (1536, 384)]


def ways(rows: int, depth: int, columns: int) -> dict[str, Callable[[], object]]:
    """Return the ways to compute a linear layer, by name. They take turns, because machines are noisy."""
    layer = torch.nn.Linear(depth, columns)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    x = torch.randn(rows, depth)
    dtype = operators.product_dtype()
    found: dict[str, Callable[[], object]] = {"oneDNN float32": partial(PrepackedLinear(layer, torch.float32), x)}
    if dtype is not None:
        product = torch.ops.bert_serving.product
        numbers, integers = to_dtype(weight, bias, dtype), to_int8(weight, bias, x.abs().amax(0), 0.5)
        found[str(dtype).removeprefix("torch.")] = partial(product, x, list(numbers), False)
        found["int8"] = partial(product, x, list(integers), False)
    return found


@torch.inference_mode()
def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--rows", type=int, nargs="+", default=[28, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    compiler = operators.find_compiler()
    if compiler is None:
        parser.error("there is no C++ compiler (g++)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operators.so"
        operators.build(compiler, path)
        operators.use(path)
    for num_threads in dict.fromkeys(args.threads):
        torch.set_num_threads(num_threads)
        print(f"\n{device_name(torch.device('cpu'))}\n")
        names = list(ways(1, *_SIZES[0]))
        print(f"| rows | layer | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
        for rows in args.rows:
            for depth, columns in _SIZES:
                runs = ways(rows, depth, columns)
                rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(args.rounds)]
                best = (2e-9 * rows * depth * columns / min(each[name] for each in rounds) for name in names)
                print(f"| {rows} | {depth} to {columns} | {' | '.join(f'{rate:,.0f}' for rate in best)} |")


if __name__ == "__main__":
    main()
