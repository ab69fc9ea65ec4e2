"""The names that a program for bert-as-service (the original) can import: parsers, namespaces, PoolingStrategy."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import bert_serving.server
import pytest
from bert_serving.server import cli
from bert_serving.server.compat.args import settings_of
from bert_serving.server.graph import PoolingStrategy
from bert_serving.server.helper import get_args_parser, get_benchmark_parser, get_run_args, get_shutdown_parser
from bert_serving.server.settings import Settings, own_version

OLD_FLAGS = shlex.split(
    "-model_dir /tmp/bert -tuned_model_dir /tmp/tuned -max_seq_len 40 -cased_tokenization -pooling_layer "
    "-4 -3 -pooling_strategy REDUCE_MEAN_MAX -mask_cls_sep -no_special_token -show_tokens_to_client "
    "-no_position_embeddings -num_labels 3 -port 1234 -port_out 1235 -http_port 1236 -http_max_connect 20 "
    "-cors * -num_worker 4 -max_batch_size 128 -priority_batch_size 8 -cpu -xla -fp16 "
    "-gpu_memory_fraction 0.3 -device_map 0 1 -prefetch_size 5 -fixed_embed_length -verbose "
    "-graph_tmp_dir /tmp"
)


def test_every_flag_of_the_original_is_understood() -> None:
    args = get_args_parser().parse_args(OLD_FLAGS)
    assert (args.port, args.num_worker, args.max_seq_len, args.gpu_memory_fraction) == (1234, 4, 40, 0.3)
    assert (args.pooling_layer, args.device_map, args.pooling_strategy) == ([-4, -3], [0, 1], ["REDUCE_MEAN_MAX"])
    assert args.cpu is args.xla is args.fp16 is args.mask_cls_sep is args.verbose is True


def test_namespace_includes_the_defaults() -> None:
    args = get_args_parser().parse_args([])
    assert (args.port, args.port_out, args.http_port, args.pooling_layer, args.cpu) == (
        5555,
        5556,
        None,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["-device", "3"], "device_map", [3]),  # from example 7 of bert-as-service
        (["-num_worker=4"], "num_worker", 4),
        (["-num", "2"], "num_worker", 2),
        (["-port_in", "7000"], "port", 7000),
        (["-model", "/x"], "model_dir", "/x"),  # as in bert-as-service, although -model_module exists too
        (["-max_b", "64"], "max_batch_size", 64),
        (["-t", "/x"], "tuned_model_dir", "/x"),
        (["-max_seq_len", "NONE"], "max_seq_len", "NONE"),
    ],
)
def test_flags_may_be_abbreviated_and_joined(flags: list[str], name: str, value: object) -> None:
    assert getattr(get_args_parser().parse_args(flags), name) == value


def test_arguments_may_be_changed_after_parsing() -> None:
    args = get_args_parser().parse_args(["-port", "5555"])
    args.pooling_layer = [-3]
    args.pooling_strategy = PoolingStrategy.REDUCE_MAX
    args.something_of_the_callers_own = 1
    settings = settings_of(args)
    assert (settings.pooling_layer, settings.pooling_strategy) == ((-3,), ("REDUCE_MAX",))


def test_settings_survive_a_round_trip_through_a_namespace() -> None:
    args = get_args_parser().parse_args(OLD_FLAGS)
    assert settings_of(args) == settings_of(get_args_parser().parse_args(OLD_FLAGS))
    assert settings_of(get_args_parser().parse_args([])) == Settings(num_worker=1)


def test_keys_survive_a_round_trip_through_a_namespace() -> None:
    args = get_args_parser().parse_args(["-api_key", "one", "two"])
    assert settings_of(args).api_key == Settings(api_key=("one", "two")).api_key
    args.api_key = ["three"]
    assert settings_of(args).api_key == Settings(api_key=("three",)).api_key


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("pooling_strategy", PoolingStrategy.CLS_TOKEN, ("FIRST_TOKEN",)),  # an enum member with two names
        ("pooling_strategy", [PoolingStrategy.REDUCE_MEAN, "REDUCE_MAX"], ("REDUCE_MEAN", "REDUCE_MAX")),
        ("pooling_strategy", "reduce_mean_max", ("REDUCE_MEAN_MAX",)),
        ("pooling_layer", -3, (-3,)),
        ("pooling_layer", 0, (0,)),
        ("pooling_layer", range(-1, -3, -1), (-1, -2)),
        ("device_map", 1, (1,)),
        ("model_dir", Path("/tmp/bert"), "/tmp/bert"),
        ("max_seq_len", "none", "NONE"),
    ],
)
def test_arguments_may_be_changed_to_every_value_that_the_original_accepts(
    name: str, value: Any, setting: Any
) -> None:
    args = get_args_parser().parse_args([])
    setattr(args, name, value)
    assert getattr(settings_of(args), name) == setting


@pytest.mark.parametrize("name", sorted(vars(get_args_parser().parse_args([]))))
def test_none_means_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BERT_SERVING_COMPILE", "BERT_SERVING_COMPILE_CACHE"):  # set for all tests
        monkeypatch.delenv(variable)
    args = get_args_parser().parse_args(OLD_FLAGS)
    setattr(args, name, None)
    field = "cased_tokenization" if name == "do_lower_case" else name
    assert getattr(settings_of(args), field) == getattr(Settings(), field)


def test_do_lower_case_may_be_changed_either_way() -> None:
    args = get_args_parser().parse_args([])
    assert args.do_lower_case is True
    args.do_lower_case = False
    assert settings_of(args).cased_tokenization is True
    args = get_args_parser().parse_args(["-cased_tokenization"])
    assert args.do_lower_case is False
    args.do_lower_case = True
    assert settings_of(args).cased_tokenization is False
    args.cased_tokenization = True
    assert settings_of(args).cased_tokenization is True


def test_num_worker_is_never_none() -> None:
    assert get_args_parser().parse_args([]).num_worker == 1
    assert get_args_parser().parse_args(["-num_worker", "3"]).num_worker == 3


def test_benchmark_arguments_can_start_a_server() -> None:
    args = get_benchmark_parser().parse_args(["-max_seq_len", "40", "-test_num_client", "1", "2"])
    assert (args.test_num_client, args.client_batch_size, args.num_worker) == ([1, 2], 4096, 1)
    assert settings_of(args) == Settings(max_seq_len=40, num_worker=1)


def test_attributes_missing_in_a_hand_made_namespace_get_their_defaults() -> None:
    args = argparse.Namespace(port=1234, verbose=None, do_lower_case=None, pooling_strategy=None)
    assert settings_of(args) == Settings(port=1234)


def test_arguments_are_added_to_a_namespace_that_is_given() -> None:
    args = get_args_parser().parse_args(["-port", "1234"], argparse.Namespace(mine=1))
    assert (args.mine, args.port) == (1, 1234)


def test_other_names_of_the_original_exist() -> None:
    assert bert_serving.server.__version__ == own_version()
    assert cli.main is cli.start  # programs for bert-as-service set sys.argv and call main


def test_error_for_bad_arguments_is_one_line() -> None:
    args = get_args_parser().parse_args([])
    args.port = "no number"
    with pytest.raises(ValueError, match=r"^port: input should be a valid integer.*got 'no number'$"):
        settings_of(args)


def test_get_run_args_reads_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bert-serving-start", "-port", "6001"])
    assert get_run_args().port == 6001
    assert "port = 6001" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["bert-serving-terminate", "-port", "6001"])
    assert get_run_args(get_shutdown_parser, printed=False).ip == "localhost"


def test_strategies_have_the_originals_numbers_and_names() -> None:
    assert PoolingStrategy.from_string("CLS_TOKEN") is PoolingStrategy.FIRST_TOKEN
    assert (PoolingStrategy.REDUCE_MEAN.value, str(PoolingStrategy.NONE)) == (2, "NONE")
    with pytest.raises(ValueError, match="must be one of NONE, REDUCE_MAX"):
        PoolingStrategy.from_string("NO_SUCH_STRATEGY")


def test_flags_without_effect_are_reported() -> None:
    settings = settings_of(get_args_parser().parse_args(["-xla", "-prefetch_size", "3"]))
    assert [line.partition(" ")[0] for line in settings.without_effect()] == ["-xla", "-prefetch_size"]
    assert Settings().without_effect() == []
