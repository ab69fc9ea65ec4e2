"""Architectures that Transformers does not know: a module of the user's, or code in the model's folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from bert_serving.server.model_files import ModelError
from bert_serving.server.worker.encoder import Encoder
from sentences import sentences

TEXTS = sentences(40)
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_of_own_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(example: ModuleType, tmp_path: Path) -> Path:
    """Folder of the example's checkpoint."""
    example.save_checkpoint(tmp_path / "own")
    return tmp_path / "own"


def run(code: str, *args: object) -> str:
    """Return what the code prints in a process that has registered no architecture yet."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_runs() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "(2, 32)\n"


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_own_model_gives_its_own_vectors(example: ModuleType, own: Path, layer: int) -> None:
    mine = Encoder(own, model_module=EXAMPLE, device="cpu", dtype="float32", pooling_layer=[layer])
    model = example.PyramidModel.from_pretrained(own).eval()
    for text, row in zip(TEXTS, mine.encode(TEXTS), strict=True):
        ids = torch.tensor([mine.tokenize([text])[0].ids])
        with torch.inference_mode():
            states = model(ids, torch.ones_like(ids), output_hidden_states=True).hidden_states
        expected = states[1:][layer][0].mean(0).numpy()
        assert np.abs(row - expected).max() <= 1e-5


def test_own_model_runs_padded_and_in_lower_precision(own: Path) -> None:
    mine = Encoder(own, model_module=EXAMPLE, device="cpu", dtype="bfloat16")
    assert mine.padded_because is not None
    assert mine.parity > 0.999


def test_module_may_be_named_as_import_does(own: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from bert_serving.server import Encoder; "
        "print(Encoder(sys.argv[2], model_module='own_model', device='cpu').dimension)"
    )
    assert run(code, EXAMPLE.parent, own) == "32"


def test_without_its_module_an_own_model_is_one_line(own: Path) -> None:
    code = (
        "import sys; from bert_serving.server import Encoder\n"
        "from bert_serving.server.model_files import ModelError\n"
        "try: Encoder(sys.argv[1], device='cpu')\n"
        "except ModelError as exc: print(exc)"
    )
    line = run(code, own)
    assert "pyramid" in line
    assert "\n" not in line


def test_a_module_is_imported_once(tmp_path: Path) -> None:
    from bert_serving.server.worker.model_module import import_model_module

    (tmp_path / "json.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    b: 'int' = 1\n"
    )
    first = import_model_module(str(tmp_path / "json.py"))
    assert import_model_module(str(tmp_path / "json.py")) is first
    assert sys.modules["json"] is not first


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "FileNotFoundError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 +", "SyntaxError"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
    ],
)
def test_import_failure_is_one_line(own: Path, tmp_path: Path, code: str | None, said: str) -> None:
    path = tmp_path / "broken.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ModelError, match=rf"cannot import model_module .*broken\.py: {said}") as caught:
        Encoder(own, model_module=path)
    assert "\n" not in str(caught.value)


def test_module_that_is_not_installed_is_one_line(own: Path) -> None:
    with pytest.raises(ModelError, match="cannot import model_module no_such_module"):
        Encoder(own, model_module="no_such_module")
