"""Each part of the program imports only the parts that it may import. The tests read the source code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "client", ROOT / "server")

#: Which other parts each part may import. A part is a package or module in bert_serving or bert_serving.server.
ALLOWED: dict[str, set[str]] = {
    "protocol": set(),
    "client": {"protocol"},
    "settings": {"protocol", "model", "keys", "logs", "trace_address"},
    "model": {"protocol"},
    "broker": {"protocol", "settings", "model", "compat.pooling_strategy", "buckets"},
    "worker": {"protocol", "model", "model.tensorflow.google_bert"},
    "gateway": {"protocol", "client", "settings", "buckets", "keys", "number_formats", "tls", "signals", "logs"},
    "supervisor": {"protocol", "settings", "model", "broker", "keys", "tls", "signals", "logs", "trace_address"},
    # What stands beside the server. No other part imports it.
    "engine": {"protocol", "client", "model", "broker", "worker"},
    "files": {"protocol", "client", "settings", "model", "number_formats", "worker"},
    "compat": {"protocol", "client", "settings", "supervisor", "model", "compat.pooling_strategy"},
    "cli": {"protocol", "client", "settings", "supervisor", "compat", "files", "model"},
    # For Ray: most of it can be imported only where Ray is installed.
    "ray": {
        "protocol",
        "client",
        "settings",
        "model",
        "keys",
        "gateway",
        "supervisor",
        "engine",
        "files",
        "worker",
    },
    # For bert-serving-doctor, which loads a model as a worker would.
    "doctor": {"settings", "model", "supervisor", "worker"},
    # For traces, with the extra `otel`. The supervisor and the gateway import it by name.
    "otel": {"protocol", "broker", "gateway", "logs"},
    # For students of large models, with the extra `train`.
    "train": {"settings", "model", "files", "worker"},
    # Modules for programs that were written for bert-as-service. They only import names from compat.
    "benchmark": {"compat"},
    "helper": {"compat", "compat.pooling_strategy"},
    "graph": {"compat", "compat.pooling_strategy"},
    # Modules that several parts share.
    "buckets": set(),
    "keys": set(),
    "logs": set(),
    "number_formats": {"protocol"},
    "signals": set(),
    "tls": set(),
    "trace_address": set(),
    "compat.pooling_strategy": {"protocol"},
    # Converts a TensorFlow checkpoint into a PyTorch model. It is in model/ because it reads a file format, but
    # only the worker uses it.
    "model.tensorflow.google_bert": {"model"},
    # For `from bert_serving.server import AsyncEncoder, BertServer, Encoder`.
    "server": {"compat", "worker", "engine", "settings"},
}

#: Packages that only the listed parts may import. The rule also holds inside functions.
HEAVY = {
    "torch": {"worker", "model.tensorflow.google_bert", "train", "doctor"},
    "transformers": {"worker", "model.tensorflow.google_bert", "train"},
    "fastapi": {"gateway"},
    "starlette": {"gateway", "ray", "otel"},
    "uvicorn": {"gateway", "ray"},
    "pydantic": {"gateway", "settings", "compat", "files", "model", "ray", "train", "doctor"},
    "pyarrow": {"files", "ray"},
    "opentelemetry": {"otel"},
    "ray": {"files", "ray"},
    "sentence_transformers": {"train"},
    "rich": {"cli"},
}


def part_of(module: str) -> str:
    """Return the part that a module belongs to: the longest prefix of its name that is a key of ALLOWED."""
    name = module.removeprefix("bert_serving.").removeprefix("server.")
    while name not in ALLOWED and "." in name:
        name = name.rpartition(".")[0]
    return name


def modules() -> Iterator[tuple[str, Path]]:
    for source in SOURCES:
        for path in sorted(source.rglob("*.py")):
            name = ".".join(path.relative_to(source).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Yield the full names that a file imports, also those imported inside functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


MODULES = dict(modules())


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    found = {
        (module, name)
        for module, path in MODULES.items()
        if part_of(module) == part
        for name in imports(module, path)
        if name.startswith("bert_serving.") and part_of(name) not in ALLOWED[part] | {part}
    }
    assert found == set()


@pytest.mark.parametrize("package", HEAVY)
def test_only_the_listed_parts_import_a_heavy_package(package: str) -> None:
    found = {
        module
        for module, path in MODULES.items()
        for name in imports(module, path)
        if name.split(".")[0] == package and part_of(module) not in HEAVY[package]
    }
    assert found == set()


def test_the_table_lists_exactly_the_parts_that_exist() -> None:
    assert {part_of(module) for module in MODULES} == ALLOWED.keys()


def test_broker_worker_and_gateway_do_not_import_each_other() -> None:
    processes = {"broker", "worker", "gateway"}
    for part in processes:
        assert not ALLOWED[part] & (processes - {part})
