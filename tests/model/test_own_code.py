"""Architectures that Transformers does not know, from a user's module or from code in the model folder."""

from __future__ import annotations

import builtins
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from safetensors.torch import save_file

from tests.support.sentences import sentences
from tests.support.tiny_models import make_tokenizer
from tests.support.waiting import HANG_S

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
    """Return the folder of the example's checkpoint."""
    example.save_checkpoint(tmp_path / "own")
    return tmp_path / "own"


def run(code: str, *args: object) -> str:
    """Run the code in a new process, in which no architecture is registered yet; return the printed text."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_S, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_runs() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout == "(2, 32)\n"


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_custom_model_gives_the_right_vectors(example: ModuleType, own: Path, layer: int) -> None:
    mine = Encoder(own, model_module=EXAMPLE, device="cpu", dtype="float32", pooling_layer=[layer])
    model = example.PyramidModel.from_pretrained(own).eval()
    for text, row in zip(TEXTS, mine.encode(TEXTS), strict=True):
        ids = torch.tensor([mine.prepare([text])[0].text.ids])
        with torch.inference_mode():
            states = model(ids, torch.ones_like(ids), output_hidden_states=True).hidden_states
        expected = states[1:][layer][0].mean(0).numpy()
        assert np.abs(row - expected).max() <= 1e-5


def test_custom_model_runs_padded_and_in_lower_precision(own: Path) -> None:
    mine = Encoder(own, model_module=EXAMPLE, device="cpu", dtype="bfloat16")
    assert mine.padded_because is not None
    assert mine.parity > 0.999


def test_module_may_be_given_by_its_import_name(own: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from bert_serving.server import Encoder; "
        "print(Encoder(sys.argv[2], model_module='own_model', device='cpu').dimension)"
    )
    assert run(code, EXAMPLE.parent, own) == "32"


def test_error_for_a_custom_model_without_its_module_is_one_line(own: Path) -> None:
    code = (
        "import sys; from bert_serving.server import Encoder\n"
        "from bert_serving.server.model.errors import ModelError\n"
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
def test_error_for_a_failed_import_is_one_line(own: Path, tmp_path: Path, code: str | None, said: str) -> None:
    path = tmp_path / "broken.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ModelError, match=rf"cannot import model_module .*broken\.py: {said}") as caught:
        Encoder(own, model_module=path)
    assert "\n" not in str(caught.value)


def test_error_for_a_module_that_is_not_installed_is_one_line(own: Path) -> None:
    with pytest.raises(ModelError, match="cannot import model_module no_such_module"):
        Encoder(own, model_module="no_such_module")


# -- code in the folder --------------------------------------------------------------------------------

CODE = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class ScaledConfig(PreTrainedConfig):
    model_type = "MODEL_TYPE"
    num_hidden_layers = 1

class ScaledModel(PreTrainedModel):
    config_class = ScaledConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(256, 8)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False, **_):
        return BaseModelOutput(last_hidden_state=self.embeddings(input_ids) * SCALE)
"""


def make_folder_with_code(folder: Path, *, scale: int = 2, model_type: str = "scaled", upstream: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    auto_map = {
        kind: f"{upstream}modeling.Scaled{kind.removeprefix('Auto')}" for kind in ("AutoConfig", "AutoModel")
    }
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": auto_map}))
    save_file({"embeddings.weight": torch.arange(2048.0).reshape(256, 8) / 2048}, folder / "model.safetensors")
    make_tokenizer(0).save_pretrained(folder)
    if not upstream:
        (folder / "modeling.py").write_text(CODE.replace("SCALE", str(scale)).replace("MODEL_TYPE", model_type))
    return folder


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Transformers copy the code of models into a new folder, and forget the code that it has imported."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(autouse=True)
def no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        pytest.fail("the code asked for input on the terminal")

    monkeypatch.setattr(builtins, "input", fail)


def first_component(folder: Path, **options: object) -> float:
    encoder = Encoder(folder, trust_remote_code=True, device="cpu", dtype="float32", pooling_layer=[-1], **options)  # type: ignore[arg-type]
    ids = encoder.prepare(["hello"])[0].text.ids
    return float(encoder.encode(["hello"])[0, 0] / np.mean([i * 8 / 2048 for i in ids]))


@pytest.mark.parametrize("model_type", ["scaled", "bert"])
def test_code_in_the_folder_runs_if_trusted(tmp_path: Path, model_type: str) -> None:
    folder = make_folder_with_code(tmp_path / "coded", model_type=model_type)
    assert first_component(folder) == pytest.approx(2)


def test_each_folder_runs_its_own_code(tmp_path: Path) -> None:
    two = make_folder_with_code(tmp_path / "two", scale=2)
    three = make_folder_with_code(tmp_path / "three", scale=3)
    assert first_component(two) == pytest.approx(2)
    assert first_component(three) == pytest.approx(3)


def test_code_in_the_tuned_folder_is_not_run(tmp_path: Path) -> None:
    two = make_folder_with_code(tmp_path / "two", scale=2)
    tuned = make_folder_with_code(tmp_path / "tuned", scale=3)
    assert first_component(two, tuned_model_dir=tuned) == pytest.approx(2)


@pytest.mark.parametrize("model_type", ["scaled", "bert"])
def test_error_for_code_that_is_not_trusted_names_the_flag(tmp_path: Path, model_type: str) -> None:
    folder = make_folder_with_code(tmp_path / "coded", model_type=model_type)
    (folder / "modeling.py").write_text("raise RuntimeError('ran')")
    with pytest.raises(ModelError, match="-trust_remote_code") as caught:
        Encoder(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_for_code_in_another_repository_names_the_flag(tmp_path: Path) -> None:
    folder = make_folder_with_code(tmp_path / "coded", model_type="unheard-of", upstream="someone/code--")
    with pytest.raises(ModelError, match="-trust_remote_code") as caught:
        Encoder(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_error_for_code_that_fails_is_one_line(tmp_path: Path) -> None:
    folder = make_folder_with_code(tmp_path / "coded", model_type="failing")
    (folder / "modeling.py").write_text("raise RuntimeError('first\\nsecond')")
    with pytest.raises(ModelError, match="RuntimeError: first") as caught:
        Encoder(folder, trust_remote_code=True, device="cpu")
    assert "\n" not in str(caught.value)


def test_model_module_replaces_code_in_the_folder(tmp_path: Path) -> None:
    folder = make_folder_with_code(tmp_path / "coded", model_type="stood-in")
    module = tmp_path / "mine.py"
    code = (folder / "modeling.py").read_text().replace("* 2", "* 5")
    module.write_text(
        f"{code}\nfrom transformers import AutoConfig, AutoModel\n"
        "AutoConfig.register('stood-in', ScaledConfig)\nAutoModel.register(ScaledConfig, ScaledModel)\n"
    )
    encoder = Encoder(folder, model_module=module, device="cpu", dtype="float32", pooling_layer=[-1])
    row = encoder.encode(["hello"])[0, 0]
    assert row == pytest.approx(5 * np.mean([i * 8 / 2048 for i in encoder.prepare(["hello"])[0].text.ids]))
