"""References from a model's configuration to Python code that is not part of Transformers."""

from __future__ import annotations

from pathlib import Path

from .json_files import read_json_if_present

_FILES = (("config.json", ("AutoConfig", "AutoModel")), ("tokenizer_config.json", ("AutoTokenizer",)))


def code_references(transformer_dir: Path) -> list[str]:
    """Return the references to code that Transformers would load instead of its own classes. Raises ModelError.

    `file.Class` is code in the folder itself; `repository--file.Class` is code of another repository on the hub.
    """
    references: list[object] = []
    for name, kinds in _FILES:
        auto_map = read_json_if_present(transformer_dir / name).get("auto_map") or {}
        found = [auto_map.get(kind) for kind in kinds] if isinstance(auto_map, dict) else [auto_map]
        for each in found:
            references += each if isinstance(each, list) else [each]  # a list has the slow and the fast tokenizer
    return [reference for reference in references if isinstance(reference, str)]
