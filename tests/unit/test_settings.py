"""Every setting is a flag, an environment variable and a line of the table. A bad value is an error."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from bert_serving.server.keys import hash_of
from bert_serving.server.settings import Settings, parse_settings, settings_parser
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BERT_SERVING_"):
            monkeypatch.delenv(name)


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Parse bad flags; return the error message."""
    with pytest.raises(SystemExit) as caught:
        parse_settings(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_the_old_server() -> None:
    settings = parse_settings([])
    assert (settings.port, settings.port_out, settings.http_port) == (5555, 5556, None)
    assert (settings.max_batch_size, settings.priority_batch_size, settings.cpu) == (256, 16, False)


def test_server_listens_on_loopback_unless_told_otherwise() -> None:
    assert parse_settings([]).host == "127.0.0.1"


@pytest.mark.parametrize("dash", ["-", "--"])
def test_flags_have_one_dash_or_two(dash: str) -> None:
    settings = parse_settings([f"{dash}port", "6000", f"{dash}max_seq_len", "40", f"{dash}cpu"])
    assert (settings.port, settings.max_seq_len, settings.cpu) == (6000, 40, True)


@pytest.mark.parametrize("dash", ["-", "--"])
@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_a_flag_with_help(name: str, dash: str) -> None:
    actions = {flag: action for action in settings_parser("x")._actions for flag in action.option_strings}
    assert len(actions[dash + name].help or "") > 10


@pytest.mark.parametrize(
    ("flag", "name"), [("-port_in", "port"), ("-port_data", "port"), ("-port_result", "port_out")]
)
def test_old_names_of_ports_still_work(flag: str, name: str) -> None:
    assert getattr(parse_settings([flag, "6000"]), name) == 6000


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MODEL_DIR", "/models/a", "/models/a"),
        ("NUM_WORKER", "3", 3),
        ("DEVICE_MAP", "0 2", (0, 2)),
        ("DEVICE_MAP", "0,2", (0, 2)),
        ("CPU", "1", True),
        ("HTTP_PORT", "8125", 8125),
        ("POOLING_LAYER", "-4 -3,-2", (-4, -3, -2)),
        ("POOLING_STRATEGY", "reduce_max cls", ("REDUCE_MAX", "CLS_TOKEN")),
        ("OUTBOX_AGE", "2.5", 2.5),
        ("PORT", "", 5555),
    ],
)
def test_setting_is_also_a_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any) -> None:
    monkeypatch.setenv(f"BERT_SERVING_{name}", text)
    assert getattr(parse_settings([]), name.lower()) == value


def test_flag_wins_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_SERVING_PORT", "6000")
    assert parse_settings(["-port", "7000"]).port == 7000


def test_unknown_environment_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "6000")
    assert parse_settings([]).port == 5555


@pytest.mark.parametrize(
    ("argv", "layers"),
    [
        (["-pooling_layer", "-2"], (-2,)),
        (["-pooling_layer", "-4", "-3", "-2", "-1"], (-4, -3, -2, -1)),
        (["-pooling_layer", "-4", "-cpu"], (-4,)),
        (["-pooling_layer", "0"], (0,)),
        ([], None),
    ],
)
def test_layers_are_a_list_of_numbers_that_may_be_negative(
    argv: list[str], layers: tuple[int, ...] | None
) -> None:
    assert parse_settings(argv).pooling_layer == layers


@pytest.mark.parametrize(
    ("given", "strategy"), [("REDUCE_MEAN", "REDUCE_MEAN"), ("cls_token", "CLS_TOKEN"), ("AUTO", "auto")]
)
def test_pooling_strategy_is_understood_in_any_case(given: str, strategy: str) -> None:
    assert parse_settings(["-pooling_strategy", given]).pooling_strategy == (strategy,)


@pytest.mark.parametrize("none", ["NONE", "none", "None"])
def test_max_seq_len_none_is_understood_in_any_case(none: str) -> None:
    assert parse_settings(["-max_seq_len", none]).max_seq_len == "NONE"


def test_settings_cannot_be_changed() -> None:
    settings = parse_settings([])
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_settings_survive_a_round_trip() -> None:
    settings = parse_settings(["-device_map", "0", "1", "-pooling_layer", "-2", "-http_port", "8125"])
    assert Settings(**settings.model_dump()) == settings


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(prot=5555)  # type: ignore[call-arg]


# -- API keys ------------------------------------------------------------------------------------------


def test_settings_hold_only_the_hash_of_a_key_and_show_not_even_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_SERVING_API_KEY", "first second")
    settings = parse_settings([])
    hashes = [key.get_secret_value() for key in settings.api_key]
    assert hashes == [hash_of("first"), hash_of("second")]
    for shown in (repr(settings), settings.table(), str(settings.model_dump())):
        assert not [word for word in ("first", "second", *hashes) if word in shown]


def test_settings_with_keys_survive_the_way_to_another_process() -> None:
    settings = parse_settings(["-api_key", "secret", "-device_map", "0", "1"])
    assert Settings(**json.loads(settings.model_dump_json())) == settings
    assert Settings(**settings.model_dump()) == settings


# -- bad settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-port", "0"], ["port", "greater than or equal to 1", "'0'"]),
        (["-port", "70000"], ["port", "less than or equal to 65535", "'70000'"]),
        (["-port", "http"], ["port", "integer", "'http'"]),
        (["-port_out", "5555"], ["port, port_out and http_port must differ", "5555"]),
        (["-http_port", "5556"], ["port, port_out and http_port must differ", "5556"]),
        (["-max_seq_len", "2"], ["max_seq_len", "3", "'2'"]),
        (["-num_worker", "0"], ["num_worker", "greater than or equal to 1", "'0'"]),
        (["-max_batch_size", "0"], ["max_batch_size", "'0'"]),
        (["-pooling_strategy", "NO_SUCH_STRATEGY"], ["pooling_strategy", "REDUCE_MEAN", "'NO_SUCH_STRATEGY'"]),
        (["-pooling_layer", "last"], ["pooling_layer", "integer", "'last'"]),
        (["-api_key", "schlüssel"], ["api_key", "ASCII"]),
        (["-protect_metrics"], ["protect_metrics needs api_key or api_key_file"]),
        (["-tls_cert", "cert.pem"], ["tls_cert and tls_key must be given together"]),
        (["-tls_key", "key.pem"], ["tls_cert and tls_key must be given together"]),
        (["-root_path", "prefix"], ["root_path must be a path such as /vectors", "'prefix'"]),
        (["-root_path", "/a?b"], ["root_path must be a path such as /vectors", "'/a?b'"]),
        (["-root_path", "//"], ["root_path must be a path such as /vectors", "'//'"]),
        (["-dtype", "int4"], ["dtype", "bfloat16", "'int4'"]),
        (["-device_map", "-1"], ["device_map", "GPU ids from 0", "-1"]),
        (["-outbox_age", "nan"], ["outbox_age", "greater than 0"]),
        (["-no_such_flag"], ["no_such_flag"]),
        (["-port"], ["port", "expected one argument"]),
    ],
)
def test_bad_flag_is_named_with_what_was_expected_and_what_came(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    last_line = error_of(capsys, *argv).strip().splitlines()[-1]
    assert [word for word in words if word not in last_line] == []


def test_a_bad_key_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "schlüssel" not in error_of(capsys, "-api_key", "schlüssel")


@pytest.mark.parametrize("argv", [["-port", "0"], ["-port_out", "5555"], ["-no_such_flag"]])
def test_bad_flag_prints_one_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert error_of(capsys, *argv).strip().count("\n") == 0


def test_bad_variable_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_SERVING_NUM_WORKER", "many")
    last_line = error_of(capsys).strip().splitlines()[-1]
    assert "num_worker" in last_line
    assert "'many'" in last_line


def test_version_is_printed_with_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(["-version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("bert-serving-start ")


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 5555)" in text
    assert "BERT_SERVING_" in text


# -- the table of settings -----------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{"api_key": "secret"}, {"api_key_file": "keys"}])
def test_api_keys_have_no_effect_without_http(keys: dict[str, object]) -> None:
    (line,) = Settings(**keys).without_effect()
    assert line.startswith("-api_key and -api_key_file have no effect without -http_port")
    assert Settings(**keys, http_port=8125).without_effect() == []


def test_tls_and_the_prefix_have_no_effect_without_http() -> None:
    given = {"tls_cert": "cert.pem", "tls_key": "key.pem", "root_path": "/prefix"}
    assert [line.split()[0] for line in Settings(**given).without_effect()] == ["-root_path", "-tls_cert"]
    assert [line.split()[0] for line in Settings(**given, http_socket="s").without_effect()] == ["-tls_cert"]
    assert Settings(**given, http_port=8125).without_effect() == []


@pytest.mark.parametrize(
    ("given", "prefix"), [("", ""), ("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a/b-1.0_~", "/a/b-1.0_~")]
)
def test_the_prefix_has_no_slash_at_its_end(given: str, prefix: str) -> None:
    assert Settings(root_path=given).root_path == prefix


def test_table_has_a_line_for_every_setting_with_an_effect() -> None:
    names = [line.split("=")[0].strip() for line in parse_settings([]).table().splitlines()]
    without_effect = {"xla", "gpu_memory_fraction", "graph_tmp_dir", "prefetch_size"}
    assert names == [name for name in Settings.model_fields if name not in without_effect]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["-port", "6000"], "port = 6000"),
        (["-cpu"], "cpu = True"),
        (["-pooling_layer", "-4", "-3"], "pooling_layer = -4 -3"),
        ([], "model_dir = -"),
        ([], "device_map = -"),
    ],
)
def test_table_shows_the_values_in_effect(argv: list[str], line: str) -> None:
    assert line in [row.strip() for row in parse_settings(argv).table().splitlines()]


def test_equal_signs_of_the_table_are_aligned() -> None:
    assert len({row.index("=") for row in parse_settings([]).table().splitlines()}) == 1


def test_an_empty_path_is_not_set() -> None:  # compose files set variables to nothing
    settings = Settings(http_socket="", tls_cert="", tls_key="")
    assert (settings.http_socket, settings.tls_cert, settings.tls_key) == (None, None, None)
