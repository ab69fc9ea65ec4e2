"""A dialect can be removed, because only app.py imports it."""

from __future__ import annotations

import ast
from pathlib import Path

import bert_serving.server.gateway.dialects as package
import pytest

DIALECTS = Path(str(package.__file__)).parent
NAMES = sorted(path.stem for path in DIALECTS.glob("*.py") if path.stem != "__init__")


def imported_names(path: Path) -> set[str]:
    """Return the names of the dialects that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(f"{node.module or ''}.{alias.name}" for alias in node.names)]
            # A dialect can import another one with `from . import x`.
            names += [
                f"dialects.{alias.name}" for alias in node.names if path.parent == DIALECTS and node.level == 1
            ]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {found for name in names for found in NAMES if f"dialects.{found}" in name}


@pytest.mark.parametrize("name", NAMES)
def test_only_app_imports_a_dialect(name: str) -> None:
    files = [*DIALECTS.glob("*.py"), *DIALECTS.parent.glob("*.py")]
    assert [path.name for path in files if name in imported_names(path)] == ["app.py"]
