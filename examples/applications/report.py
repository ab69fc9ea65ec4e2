"""What the applications share: their arguments, the connection to a server, tables and pictures."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from bert_serving.client import BertClient
from sklearn.feature_extraction.text import TfidfVectorizer

Vectors = npt.NDArray[Any]
Encode = Callable[[list[str]], Vectors]  # gives texts rows of unit length
Points = tuple[Sequence[float], Sequence[float]]  # x and y of each point of a line


def parser_of(description: str | None, picture: str, uses_server: bool = True) -> argparse.ArgumentParser:
    """Return a parser with what all applications have. picture: name of the file that is drawn."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if uses_server:
        parser.add_argument("--port", type=int, default=5555)
        parser.add_argument("--port_out", type=int, default=5556)
    parser.add_argument("--picture", type=Path, default=Path(picture))
    return parser


def connected(args: argparse.Namespace) -> BertClient:
    """Return a client of the server that the arguments name."""
    return BertClient(port=args.port, port_out=args.port_out)


@contextmanager
def started(*flags: object) -> Iterator[tuple[BertClient, str]]:
    """Start a server with these flags on free ports; yield a client of it and its address for HTTP."""
    from bert_serving.server import BertServer  # here, because the other applications need only the client
    from bert_serving.server.helper import get_args_parser

    args = get_args_parser().parse_args(list(map(str, flags)))
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        args.port, args.port_out, args.http_port = (each.getsockname()[1] for each in sockets)
    with BertServer(args), BertClient(port=args.port, port_out=args.port_out) as client:
        yield client, f"http://127.0.0.1:{args.http_port}"


def encoder_of_words(texts: Sequence[str]) -> Encode:
    """Return the baseline of many applications: a function that gives texts the TF-IDF of their words.

    texts: those that say which words are rare.
    """
    weights = TfidfVectorizer(sublinear_tf=True, dtype=np.float32).fit(texts)
    return lambda some: weights.transform(some).toarray()


def show(results: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table: a line for each result, with its measures."""
    names = next(iter(results.values()))
    print(f"{'':32}" + "".join(f"{name:>22}" for name in names))
    for title, found in results.items():
        print(f"{title:32}" + "".join(f"{value:22.3f}" for value in found.values()))


def draw_bars(results: Mapping[str, Mapping[str, float]], measure: str, path: Path) -> None:
    """Draw one measure of each result."""
    figure, axes = plt.subplots(figsize=(6, 0.4 * len(results) + 0.8), layout="constrained")
    axes.barh(list(results), [found[measure] for found in results.values()])
    axes.invert_yaxis()
    axes.set(xlabel=measure)
    figure.savefig(path, metadata={"Date": None})


def draw_curves(curves: Mapping[str, Points], path: Path, **axes_of: object) -> None:
    """Draw lines through points (x, y). axes_of: arguments of Axes.set, such as xlabel."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, marker="." if len(x) < 20 else None)
    axes.set(**axes_of)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def draw_table(cells: Vectors, rows: Sequence[str], columns: Sequence[str], path: Path, title: str) -> None:
    """Draw a table of parts between 0 and 1, darker for larger ones."""
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(rows) + 1.6), layout="constrained")
    axes.pcolormesh(cells, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=45, ha="right")
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.set(title=title)
    figure.savefig(path, metadata={"Date": None})
