"""The models: their folders, and what the peers need beside the weights (ONNX, OpenVINO).

Folders that are made here are kept, as the environments are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert_serving.server.model.demo import find_demo_model

from benchmarks.arena.environments import NotInstalledError, python_of
from benchmarks.arena.in_process import reason_in
from benchmarks.arena.texts import natural
from tests.support.kept_folders import kept

Export = Literal["onnx", "openvino"]

_DRIVERS = Path(__file__).parent / "drivers"
_CALIBRATION_SEED = 11  # texts that no workload measures
_VERSION = "1"  # change it when a folder must be made again


@dataclass(frozen=True)
class Model:
    """A model. max_tokens: longest sequence. bulk: default number of texts of a bulk job."""

    name: str
    folder: Path
    max_tokens: int
    bulk: int


def find_model(name: str) -> Model:
    """Return a model; make its folder if it does not exist."""
    return MODELS[name]()


def _demo() -> Model:
    return Model("demo", find_demo_model(), 256, 1024)


def _base() -> Model:
    return Model("base", _random("base"), 512, 256)


def _long() -> Model:
    return Model("long", _random("long"), 8192, 512)


MODELS: dict[str, Callable[[], Model]] = {"demo": _demo, "base": _base, "long": _long}


def _random(name: str) -> Path:
    """Return a kept folder with a model that has random weights."""

    def make(folder: Path) -> None:
        # A process of its own, because the arena must not import torch.
        subprocess.run([sys.executable, "-m", "benchmarks.arena.random_models", name, folder], check=True)

    return kept(f"arena-model-{name}", [_VERSION], make)


def exported(model: Model, export: Export) -> Path:
    """Return a copy of the model's folder that also has the export, in float32 and in int8.

    The export is made in the environment of its peer. Raises NotInstalledError.
    """
    python = python_of(export)

    def make(folder: Path) -> None:
        shutil.copytree(model.folder, folder)
        done = subprocess.run(
            [python, _DRIVERS / f"export_{export}.py", folder],
            input=json.dumps(natural(300, seed=_CALIBRATION_SEED)),
            capture_output=True,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        if done.returncode:
            raise NotInstalledError(f"the export failed: {reason_in(done.stderr)}")

    return kept(f"arena-model-{model.name}-{export}", [_VERSION, str(python), str(model.folder)], make)
