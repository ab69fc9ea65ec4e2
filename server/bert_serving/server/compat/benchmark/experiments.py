"""What bert-serving-benchmark measures, and how its results are written. This file does no I/O.

An experiment varies one value and keeps the others. Flags, defaults and tables are those of bert-as-service. In
bert-as-service's protocol, all sentences have the maximum length. In a second protocol, sentences have mixed
lengths, which shows the gain from computing without padding.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from ...model.spec import validation_line
from ...settings import OneLineParser, Settings, settings_parser
from .sentences import FULL, MIXED

NUM_WARM_UP = 2  # the first requests of each client, which are not part of the result

#: What experiments vary, and the values that bert-as-service's benchmark uses by default.
VARIED: dict[str, tuple[int, ...]] = {
    "client_batch_size": (1, 16, 256, 4096),
    "max_batch_size": (8, 32, 128, 512),
    "max_seq_len": (32, 64, 128, 256),
    "num_client": (1, 4, 16, 64),
    "pooling_layer": tuple(range(-1, -13, -1)),
}

_SERVER_SIDE = ("max_batch_size", "max_seq_len", "pooling_layer")
_MAX_SEQ_LEN = 25  # bert-as-service's default

_HELP = """\
The defaults are bert-as-service's and take hours on a small CPU. To save time, give fewer values, an empty list
(which skips the experiment), a smaller -client_batch_size or a smaller -num_repeat. The following command takes
minutes on two cores:
  bert-serving-benchmark -client_batch_size 256 -num_repeat 4 -test_client_batch_size 1 16 256
      -test_max_batch_size 32 256 -test_max_seq_len 16 32 64 -test_num_client 1 4 -test_pooling_layer -1 -6
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement. changes: settings of the server that replace those in the flags."""

    client_batch_size: int
    num_client: int
    sentence_len: int
    changes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run. flags: the flags given for the server. is_half: whether these flags select float16."""

    experiments: Mapping[str, Sequence[int]]
    base: Point
    flags: Mapping[str, object]
    protocols: tuple[str, ...]
    num_repeat: int
    wait_till_ready: int
    vocab_file: str
    is_half: bool

    def points(self, name: str) -> Iterator[tuple[int, Point]]:
        """Yield each value of an experiment and the Point to measure with it."""
        for value in self.experiments[name]:
            yield value, _varied(self.base, name, value)

    def server_flags(self, point: Point, ports: Mapping[str, int]) -> list[str]:
        """Return the flags of bert-serving-start for a measurement on these ports of this machine."""
        argv: list[str] = []
        for name, value in {**self.flags, "host": "127.0.0.1", **ports, **point.changes}.items():
            argv += [f"-{name}", *map(str, value if isinstance(value, list) else [value])]
        return argv

    def __str__(self) -> str:
        base = self.base
        return (
            f"unless varied: client_batch_size {base.client_batch_size}, num_client {base.num_client}, "
            f"max_seq_len {base.sentence_len}; {self.num_repeat} requests of each client, "
            f"the first {NUM_WARM_UP} not counted"
        )


@dataclass(frozen=True, slots=True)
class Speeds:
    """Sentences per second of each client."""

    of_clients: tuple[float, ...]

    @property
    def mean(self) -> int:
        """Sentences per second of one client: the mean over all clients."""
        return int(sum(self.of_clients) / len(self.of_clients))

    @property
    def total(self) -> int:
        """Sentences per second of all clients together."""
        return int(sum(self.of_clients))


def parse_plan(argv: Sequence[str] | None = None) -> Plan:
    """Return the plan for the flags; for bad flags print one line and exit with 2."""
    parser = benchmark_parser()
    args = vars(parser.parse_args(argv))
    flags = {name: args[name] for name in Settings.model_fields if args.get(name) is not None}
    try:
        settings = Settings(**flags)
    except ValidationError as exc:
        parser.error(validation_line(exc))
    for name in ("client_batch_size", "num_client", "wait_till_ready"):
        if args[name] < 1:
            parser.error(f"{name} must be at least 1, got {args[name]}")
    if args["num_repeat"] <= NUM_WARM_UP:
        parser.error(
            f"num_repeat must be more than {NUM_WARM_UP}, the number of requests that are not counted, "
            f"got {args['num_repeat']}"
        )
    experiments = {name: args[f"test_{name}"] for name in VARIED if args[f"test_{name}"]}
    if not experiments:
        parser.error("nothing to measure: every -test_... is empty")
    for name, values in experiments.items():
        if name != "pooling_layer" and min(values) < 1:
            parser.error(f"test_{name} must hold numbers from 1, got {min(values)}")
    is_length_given = settings.max_seq_len is not None
    return Plan(
        experiments=experiments,
        base=Point(
            args["client_batch_size"],
            args["num_client"],
            settings.max_seq_len if isinstance(settings.max_seq_len, int) else _MAX_SEQ_LEN,
            {} if is_length_given else {"max_seq_len": _MAX_SEQ_LEN},
        ),
        flags=flags,
        protocols=(FULL, MIXED) if args["mixed"] else (FULL,),
        num_repeat=args["num_repeat"],
        wait_till_ready=args["wait_till_ready"],
        vocab_file=args["client_vocab_file"],
        is_half=settings.fp16 or settings.dtype == "float16",
    )


def benchmark_parser(kind: type[OneLineParser] = OneLineParser) -> argparse.ArgumentParser:
    """Return a parser with the flags of the benchmark and those of the server."""
    parser = settings_parser("bert-serving-benchmark", kind)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Measure the speed of a server on this machine, with bert-as-service's experiments."
    parser.epilog = _HELP
    group = parser.add_argument_group("benchmark", f"here, the default of -max_seq_len is {_MAX_SEQ_LEN}")

    def add(name: str, description: str, *, default: int | str, metavar: str = "N") -> None:
        text = f"{description} (default: %(default)s)"
        group.add_argument(
            f"-{name}", f"--{name}", help=text, type=type(default), metavar=metavar, default=default
        )

    for name, values in VARIED.items():
        shown = " ".join(map(str, values))
        group.add_argument(
            f"-test_{name}",
            f"--test_{name}",
            nargs="*",
            type=int,
            metavar="N",
            default=list(values),
            help=f"measure with each of these values; an empty list skips the experiment (default: {shown})",
        )
    add("client_batch_size", "sentences in a request, unless varied", default=4096)
    add("num_client", "clients at the same time, unless varied", default=1)
    add("num_repeat", "requests of each client; the first two are not counted", default=10)
    add("wait_till_ready", "seconds to wait until a server is ready", default=30, metavar="SECONDS")
    add("client_vocab_file", "text file; its words are used in sentences", default="README.md", metavar="TEXT")
    group.add_argument(
        "-mixed",
        "--mixed",
        action="store_true",
        help="measure again with sentences of 1 to max_seq_len words, all lengths equally likely",
    )
    return parser


def result_table(name: str, protocol: str, results: Sequence[tuple[int, Speeds | None]]) -> str:
    """Return bert-as-service's Markdown table with a title, and its two lines for plotting.

    `samples/s` is the mean of the clients. A result of None means that the measurement failed.
    """
    has_clients = name == "num_client"
    lines = ["", f"**{name}, {protocol}**", ""]
    lines.append(f"|`{name}`\t|samples/s|" + ("samples/s of all clients|" if has_clients else ""))
    lines.append("|---|---|" + ("---|" if has_clients else ""))
    for value, speeds in results:
        cells = ["-"] * 2 if speeds is None else [str(speeds.mean), str(speeds.total)]
        lines.append(f"|{value}\t|" + "|".join(cells[: 1 + has_clients]) + "|")
    lines += ["", f"{name} = {[value for value, _ in results]}"]
    lines.append(f"speed = {[speeds and speeds.mean for _, speeds in results]}")
    return "\n".join(lines) + "\n"


def result_file(num_worker: int, *, is_half: bool) -> str:
    """Return the name of the file that the tables are appended to."""
    return f"benchmark-{num_worker}{'-fp16' if is_half else ''}.result"


def _varied(base: Point, name: str, value: int) -> Point:
    if name == "client_batch_size":
        return replace(base, client_batch_size=value)
    if name == "num_client":
        return replace(base, num_client=value)
    assert name in _SERVER_SIDE
    point = replace(base, changes={**base.changes, name: value})
    return replace(point, sentence_len=value) if name == "max_seq_len" else point
