"""Imports a user's module, which registers an architecture with Transformers' Auto classes."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ..model.errors import ModelError, one_line


def import_model_module(name: str) -> ModuleType:
    """Import a module by its name or by the path of its .py file, at most once in a process. Raises ModelError."""
    try:
        return _import_file(Path(name).expanduser()) if name.endswith(".py") else importlib.import_module(name)
    except Exception as exc:  # the user's code may raise anything
        raise ModelError(f"cannot import model_module {name}: {one_line(exc)}") from exc


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    # The name must be unique: files in other folders, or an installed module, may have the same name.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and Transformers look up a class's module here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
