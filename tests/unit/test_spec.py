"""The options of a model are checked once, and all of them are sent to a worker process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bert_serving.server import model
from bert_serving.server.model.errors import ModelError
from bert_serving.server.model.pooling import Pooling, PoolingRules
from bert_serving.server.model.spec import ModelOptions, ModelSpec
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.startup import worker_spec

CHANGED: dict[str, Any] = {
    "model_dir": "/models/a",
    "tuned_model_dir": "/models/b",
    "config_name": "c.json",
    "ckpt_name": "d.ckpt",
    "model_module": "e",
    "trust_remote_code": True,
    "compile": "wait",
    "compile_cache": "/cache",
    "dtype": "float16",
    "max_seq_len": "NONE",
    "max_batch_tokens": 128,
    "pooling_strategy": ("REDUCE_MAX", "CLS_TOKEN"),
    "pooling_layer": (-3, -4),
    "all_layers": True,
    "normalize": False,
    "num_labels": 3,
    "mask_cls_sep": True,
    "no_special_token": True,
    "no_position_embeddings": True,
    "cased_tokenization": True,
}


def test_a_worker_gets_every_model_option_of_the_settings() -> None:
    assert CHANGED.keys() == ModelOptions.model_fields.keys() - {"revision"}
    spec = worker_spec(Settings(**CHANGED), 0)
    assert {name: getattr(spec, name) for name in CHANGED} == CHANGED


def test_the_revision_of_a_model_that_was_found_is_not_looked_up_again() -> None:
    assert worker_spec(Settings(model_dir="/cache/snapshot", revision="v2"), 0).revision is None


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        (Settings(cpu=True, device_map=(0, 1)), ["cpu", "cpu", "cpu"]),
        (Settings(device_map=(2, 0)), ["cuda:2", "cuda:0", "cuda:2"]),
        (Settings(), ["auto", "auto", "auto"]),
    ],
)
def test_gpus_are_assigned_to_the_workers_in_turn(settings: Settings, devices: list[str]) -> None:
    assert [worker_spec(settings, index).device for index in range(3)] == devices


def test_a_spec_survives_pickling() -> None:
    spec = ModelSpec.of(Settings(**CHANGED), device="cuda:1")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_an_option_that_is_a_list_may_be_given_as_one_value() -> None:
    spec = ModelSpec.checked(pooling_strategy="max", pooling_layer=-1, model_dir=Path("/models/a"))
    assert (spec.pooling_strategy, spec.pooling_layer, spec.model_dir) == (("REDUCE_MAX",), (-1,), "/models/a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seq_len": 2}, "max_seq_len must be greater than or equal to 3, got 2"),
        ({"max_seq_len": "12"}, "max_seq_len must be a valid integer, got '12'"),
        ({"dtype": "int4"}, "dtype must be 'auto', 'float32', 'float16', 'bfloat16' or 'int8', got 'int4'"),
        (
            {"pooling_strategy": "NO_SUCH_STRATEGY"},
            "pooling_strategy must be one of auto, NONE, .*, got 'NO_SUCH_STRATEGY'",
        ),
        ({"pooling_strategy": ["NONE", "MAX"]}, "pooling_strategy NONE cannot be combined .*"),
        ({"pooling_layer": [-1] * 33}, "pooling_layer must be a whole number or a list of them, got .*"),
        ({"pooling_layer": []}, "pooling_layer must be a whole number or a list of them, got .*"),
        ({"pooling_layer": ["last"]}, "pooling_layer must be a valid integer, got 'last'"),
        ({"normalize": "maybe"}, "normalize must be a valid boolean, got 'maybe'"),
        ({"modle_dir": "a"}, "modle_dir: extra inputs are not permitted, got 'a'"),
    ],
)
def test_a_bad_option_raises_an_error_of_one_line_that_names_it(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=f"^{message}$") as caught:
        ModelSpec.checked(**options)
    assert "\n" not in str(caught.value)


# -- pooling -------------------------------------------------------------------------------------------

FOLDERS = ("CLS_TOKEN",)


@pytest.mark.parametrize(
    ("started", "asked", "expected"),
    [
        # started: the server's options. asked: the options of a request. expected: the pooling of this request,
        # first for a folder that configures no pooling, then for a folder that configures FOLDERS.
        ({}, (None, None), [Pooling(("REDUCE_MEAN",), (-2,)), Pooling(FOLDERS, (-1,), is_folders=True)]),
        ({}, (("auto",), None), [Pooling(("REDUCE_MEAN",), (-2,)), Pooling(FOLDERS, (-1,), is_folders=True)]),
        ({}, (("REDUCE_MAX",), None), [Pooling(("REDUCE_MAX",), (-2,)), Pooling(("REDUCE_MAX",), (-1,))]),
        ({}, (None, (-3,)), [Pooling(("REDUCE_MEAN",), (-3,))] * 2),
        ({"pooling_layer": (-4,)}, (None, None), [Pooling(("REDUCE_MEAN",), (-4,))] * 2),
        ({"pooling_layer": (-4,)}, (("REDUCE_MAX",), None), [Pooling(("REDUCE_MAX",), (-4,))] * 2),
        ({"pooling_strategy": ("NONE",)}, (None, None), [Pooling(("NONE",), (-2,))] * 2),
        ({"pooling_strategy": ("NONE",)}, (None, (-3,)), [Pooling(("NONE",), (-3,))] * 2),
        (
            {"pooling_strategy": ("NONE",)},
            (("auto",), None),
            [Pooling(("REDUCE_MEAN",), (-2,)), Pooling(FOLDERS, (-1,), is_folders=True)],
        ),
    ],
)
def test_pooling_is_chosen_by_the_request_or_else_by_the_server_or_else_by_the_folder(
    started: dict[str, Any],
    asked: tuple[tuple[str, ...] | None, tuple[int, ...] | None],
    expected: list[Pooling],
) -> None:
    options = ModelOptions(**started)
    rules = [PoolingRules(options.pooling_strategy, options.pooling_layer, folders) for folders in (None, FOLDERS)]
    assert [each.choose(*asked) for each in rules] == expected


def test_a_layer_that_does_not_exist_is_named() -> None:
    assert Pooling(("REDUCE_MEAN",), (-1, 0)).highest_layer(6) == 5
    with pytest.raises(ModelError, match=r"pooling_layer must be in -6\.\.5 for this model, got 6"):
        Pooling(("REDUCE_MEAN",), (6,)).highest_layer(6)


# -- imports -------------------------------------------------------------------------------------------


def test_settings_and_model_package_load_neither_torch_nor_transformers() -> None:
    root = Path(str(model.__file__)).parent
    files = [path.relative_to(root).with_suffix("") for path in root.rglob("*.py")]
    names = [".".join([model.__name__, *path.parts]) for path in files if path.name != "__init__"]
    code = (
        f"import sys, bert_serving.server.settings, bert_serving.server.supervisor.startup, {', '.join(names)}\n"
        "print(*(m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
