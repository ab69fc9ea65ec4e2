"""The JSON files of a model folder. Every function raises ModelError, which names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias, TypeVar

from .errors import ModelError

JsonObject: TypeAlias = "dict[str, object]"

_T = TypeVar("_T")


def read_json(path: Path) -> JsonObject:
    """Return the JSON object in a file."""
    return _read(path, dict)


def read_json_if_present(path: Path) -> JsonObject:
    """Return the JSON object in a file, or an empty object if the file does not exist."""
    return read_json(path) if path.is_file() else {}


def read_json_list(path: Path) -> list[object]:
    """Return the JSON list in a file."""
    return _read(path, list)


def whole_number(config: JsonObject, key: str, path: Path) -> int | None:
    """Return the number at a key of a file's JSON object; None if the key is absent or null. path: the file."""
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ModelError(f"{key} must be a whole number in {path}, got {value!r}")
    return int(value)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {path}: {exc}") from exc
    if not isinstance(value, kind):
        raise ModelError(f"{path} must hold a JSON {kind.__name__}, got {type(value).__name__}")
    return value
