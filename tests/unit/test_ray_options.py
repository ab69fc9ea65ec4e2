"""The arguments of bert_serving.ray:build_app. These tests need no Ray."""

from __future__ import annotations

import pickle

import pytest
import yaml
from bert_serving.ray.options import SERVER_SETTINGS, parse_args
from bert_serving.server.model.errors import ModelError
from bert_serving.server.settings import Settings

from tests.support.code_blocks import blocks_run_by


def test_strings_of_a_command_line_and_values_of_a_config_file_mean_the_same() -> None:
    strings = {
        "max_replicas": "4",
        "num_gpus": "0.5",
        "cpu": "true",
        "pooling_layer": "-1 -2",
        "max_seq_len": "64",
    }
    values = {"max_replicas": 4, "num_gpus": 0.5, "cpu": True, "pooling_layer": [-1, -2], "max_seq_len": 64}
    assert parse_args(strings) == parse_args(values)
    replicas, settings = parse_args(strings)
    assert (replicas.min_replicas, replicas.max_replicas, replicas.num_gpus) == (1, 4, 0.5)
    assert (settings.cpu, settings.pooling_layer, settings.max_seq_len) == (True, (-1, -2), 64)


def test_the_application_takes_the_arguments_of_the_page() -> None:
    (block,) = blocks_run_by(__file__)
    (application,) = yaml.safe_load(block.code)["applications"]
    assert application.keys() == {"name", "route_prefix", "import_path", "args"}
    assert application["import_path"] == "bert_serving.ray:build_app"
    replicas, settings = parse_args(application["args"])
    assert (replicas.min_replicas, replicas.max_replicas, replicas.num_gpus) == (1, 4, 1)
    assert settings.model_dir == "/models/my-model"


def test_variables_that_would_give_other_vectors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_SERVING_HTTP_PORT", "8125")
    assert parse_args({})
    monkeypatch.setenv("BERT_SERVING_FP16", "true")
    with pytest.raises(ModelError, match="remove BERT_SERVING_FP16"):
        parse_args({})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"modeldir": "x"}, "there is no option 'modeldir'"),
        ({"http_port": "8125"}, "http_port is an option of bert-serving-start that has no meaning with Ray"),
        ({"num_replicas": "0"}, "num_replicas: input should be greater than or equal to 1, got '0'"),
        ({"num_cpus": 0}, "num_cpus: input should be greater than 0, got 0"),
        ({"num_replicas": "two"}, "num_replicas: input should be a valid integer"),
        ({"dtype": "float8"}, "dtype: input should be 'auto'"),
        ({"num_replicas": 2, "max_replicas": 3}, "num_replicas is a fixed number"),
        ({"min_replicas": 2}, "min_replicas has no effect without max_replicas"),
        ({"target_wait_s": 1}, "target_wait_s has no effect without max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas must be at most max_replicas, got 3 and 2"),
    ],
)
def test_a_wrong_argument_is_refused_with_one_line(args: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        parse_args(args)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_the_settings_with_a_meaning_are_settings_of_the_server() -> None:
    assert Settings.model_fields.keys() >= SERVER_SETTINGS


def test_variables_set_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_SERVING_API_KEY", "secret")
    monkeypatch.setenv("BERT_SERVING_DTYPE", "bfloat16")
    _, settings = parse_args({"dtype": "float32"})
    assert settings.dtype == "float32"
    assert len(settings.api_key) == 1


def test_the_settings_that_replicas_get_contain_no_key_as_it_was_given() -> None:
    _, settings = parse_args({"api_key": "a-secret-key"})
    pickled = pickle.dumps(settings)
    assert b"a-secret-key" not in pickled
    assert pickle.loads(pickled) == settings
