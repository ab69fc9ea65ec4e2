"""Whether a model's folder is whole. No weights are loaded: only the two ends of their files are read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from ..server.model.errors import ModelError, one_line
from ..server.model.folder import ModelFolder
from ..server.model.json_files import read_json, read_json_if_present
from ..server.model.tensorflow.tensor_bundle import TensorBundle

_WEIGHTS = (  # in the order in which Transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_PICKLE = b"\x80"  # the first byte of the files of PyTorch before 1.6, which are no zip files


def check_whole(folder: ModelFolder) -> None:
    """Raise ModelError for the first file that is missing, damaged or cut off.

    folder: has passed its own check().
    """
    read_json(folder.config_path)
    for name in _TOKENIZER_FILES:
        read_json_if_present(folder.transformer_dir / name)
    prefix = folder.checkpoint_prefix
    if prefix is None:
        _check_weights(folder.weights_dir)
    else:
        _check_google(prefix)
    config = folder.sentence_transformers
    for kind, path in () if config is None else config.modules_after_pooling:
        if kind == "Dense":
            read_json(path / "config.json")
            _check_weights(path)


def _check_weights(folder: Path) -> None:
    for path in _weight_files(folder):
        _check_file(path)


def _check_file(path: Path) -> None:
    check = _check_safetensors if path.suffix == ".safetensors" else _check_pickled
    try:
        check(path)
    except Exception as exc:  # damaged files make these libraries raise many kinds of exception
        raise ModelError(
            f"the weights in {path} are damaged or cut off ({one_line(exc)}): copy or download the file again, or "
            "run git lfs pull in a clone"
        ) from exc


def _weight_files(folder: Path) -> Iterator[Path]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"there are no weights ({_WEIGHTS[0]} or {_WEIGHTS[2]}) in {folder}")
    if path.suffix != ".json":
        yield path
        return
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict):
        raise ModelError(f"{path} must have a weight_map")
    for name in sorted(set(map(str, files.values()))):
        if not (folder / name).is_file():
            raise ModelError(f"{path.name} lists {name}, which is not in {folder}: copy or download it")
        yield folder / name


def _check_safetensors(path: Path) -> None:
    with safe_open(path, framework="np"):  # checks the header, and the length of the file against it
        pass


def _check_pickled(path: Path) -> None:
    if zipfile.is_zipfile(path):  # the list of a zip file's contents is at its end
        return
    with path.open("rb") as file:
        if file.read(1) != _PICKLE:
            raise ValueError("this is no file of torch.save")


def _check_google(prefix: Path) -> None:
    TensorBundle(prefix)
    if not list(prefix.parent.glob(f"{prefix.name}.data-*-of-*")):
        raise ModelError(f"there are no weights ({prefix.name}.data-00000-of-00001) in {prefix.parent}")
