"""Tests that share servers run in one process: tests/support/distribution.py lists their files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.distribution import SERVERS

TESTS = Path(__file__).parents[1]
#: The folders that run with --dist loadscope.
FOLDERS = ("service", "hostile", "clients", "gpu")
FILES = sorted(path for folder in FOLDERS for path in (TESTS / folder).glob("test_*.py"))
#: Fixtures of a whole run that start several servers, or a server that tests change.
SHARED = {"model_servers", "target", "open_server", "ranker", "sparse_server"}


def needs_one_process(path: Path) -> bool:
    """Return whether the tests of a file share something that each process would make again."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return any(map(is_for_the_module, functions)) or any(map(takes_shared, functions))


def is_for_the_module(function: ast.FunctionDef) -> bool:
    return "pytest.fixture(scope='module')" in map(ast.unparse, function.decorator_list)


def takes_shared(function: ast.FunctionDef) -> bool:
    is_fixture = any(ast.unparse(each).startswith("pytest.fixture") for each in function.decorator_list)
    taken = {argument.arg for argument in function.args.args}
    return (is_fixture or function.name.startswith("test_")) and not SHARED.isdisjoint(taken)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_whose_tests_share_a_server_is_listed(path: Path) -> None:
    assert path.stem in SERVERS or not needs_one_process(path)


def test_every_listed_file_exists() -> None:
    assert SERVERS.keys() <= {path.stem for path in FILES}
    assert sum(map(needs_one_process, FILES)) > 20
