"""Every file, function and test to which docs/architecture.md and docs/security.md refer exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("architecture.md", "security.md")]

# `path/file.py`, or `path/file.py:Name` or `path/file.py:Class.method`.
_REFERENCE = re.compile(r"`([\w./-]+\.py)(?::([\w.]+))?`")
_FOLDERS = {
    "client": ROOT / "client" / "bert_serving",
    "protocol": ROOT / "client" / "bert_serving",
    "otel": ROOT / "server" / "bert_serving",
    "tests": ROOT,
    "examples": ROOT,
    "benchmarks": ROOT,
}


def references() -> list[tuple[str, str]]:
    return sorted({found for page in PAGES for found in _REFERENCE.findall(page.read_text("utf-8"))})


def names_in(path: Path) -> set[str]:
    """Return the names that a file defines. A name in a class is returned as `Class.name`."""
    found = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + each.id for each in targets if isinstance(each, ast.Name))

    collect(ast.parse(path.read_text("utf-8")).body, "")
    return found


def test_the_pages_have_references() -> None:
    assert len(references()) > 50


@pytest.mark.parametrize(("path", "name"), references())
def test_each_reference_of_a_page_exists(path: str, name: str) -> None:
    root = _FOLDERS.get(path.partition("/")[0], ROOT / "server" / "bert_serving" / "server")
    assert (root / path).is_file(), f"a page names {path}, which does not exist"
    if name:
        assert name in names_in(root / path), f"a page names {name}, which is not in {path}"
