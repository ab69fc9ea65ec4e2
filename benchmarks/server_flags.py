"""Compares flags of the server: how fast it is with each of them, in alternation.

    python -m benchmarks.server_flags [--rounds 2] [--bulk 1024] [--clients 64 256] [--model demo|base] --
        "-cpu -num_worker 1" "-cpu -num_worker 4" "-cpu -dtype int8"

Each argument is the flags of one server; "" stands for none. Servers run one at a time, every other round in
the opposite order. A server that passes may still compile while it is measured: add -compile wait. The figures are
medians of all rounds: sentences/s in a bulk job of one BertClient and with many BertClients that send one sentence
each (closed loop), and the time of one sentence alone.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import time
from collections import defaultdict

import torch

from benchmarks.arena import workloads
from benchmarks.arena.models import MODELS, Model, find_model
from benchmarks.arena.results import P50, P99, RATE
from benchmarks.arena.served import OwnServer
from benchmarks.common import cpu_name

Figures = dict[str, float]


def measure(flags: str, model: Model, scale: workloads.Scale) -> tuple[str, Figures]:
    """Return how a server with these flags computes, and its figures by the name of their column."""
    started = time.perf_counter()
    with OwnServer(["-model_dir", str(model.folder), *shlex.split(flags)], None) as server:
        figures = {"ready after, s": time.perf_counter() - started}
        bout = workloads.Bout(server, model, scale)
        workloads.warm_up(bout)
        bout.encode(bout.texts)  # every worker meets every length
        ((_, one),) = workloads.one(bout)
        figures |= {"one sentence: p50, ms": one[P50], "p99, ms": one[P99]}
        ((_, bulk),) = workloads.bulk(bout)
        figures["bulk"] = bulk[RATE]
        for name, found in workloads.clients(bout):
            figures |= {name: found[RATE], f"{name}: p99, ms": found[P99]}
        return ", ".join(server.ran.values()), figures


def main() -> None:
    """Print a table with a line for each server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flags", nargs="+", help="the flags of one server")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bulk", type=int, help="texts of the bulk job")
    parser.add_argument("--clients", type=int, nargs="*", default=[64, 256], help="numbers of clients")
    parser.add_argument("--model", choices=list(MODELS), default="demo")
    args = parser.parse_args()
    model = find_model(args.model)
    scale = workloads.Scale(bulk=args.bulk, clients=tuple(args.clients))
    ran: dict[str, str] = {}
    found: dict[str, list[Figures]] = defaultdict(list)
    for i in range(args.rounds):
        for flags in args.flags[:: -1 if i % 2 else 1]:
            ran[flags], figures = measure(flags, model, scale)
            found[flags].append(figures)
            print(f"round {i + 1}: {flags or 'no flags'}: {ran[flags]} {figures}", flush=True)
    gpus = [torch.cuda.get_device_name(j) for j in range(torch.cuda.device_count())]
    print(f"\n{', '.join([cpu_name(), *gpus])}, torch {torch.__version__}, model {model.name}\n")
    columns = list(figures)
    print(f"| flags | ran | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for flags, rounds in found.items():
        medians = (statistics.median(each[column] for each in rounds) for column in columns)
        cells = [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in medians]
        print(f"| {flags or 'none'} | {ran[flags]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
