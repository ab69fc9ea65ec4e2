"""The plans and the tables of bert-serving-benchmark. No server is started here."""

from __future__ import annotations

import pytest
from bert_serving.server.compat.benchmark.experiments import (
    Point,
    Speeds,
    benchmark_parser,
    parse_plan,
    result_file,
    result_table,
)
from bert_serving.server.compat.benchmark.sentences import FULL, MIXED, make_sentences, vocabulary_of

ONLY_BATCHES = [
    "-test_max_batch_size",
    "-test_max_seq_len",
    "-test_num_client",
    "-test_pooling_layer",
    "-test_client_batch_size",
    "1",
    "16",
]


def test_defaults_are_those_of_bert_as_service() -> None:
    plan = parse_plan([])
    assert plan.experiments == {
        "client_batch_size": [1, 16, 256, 4096],
        "max_batch_size": [8, 32, 128, 512],
        "max_seq_len": [32, 64, 128, 256],
        "num_client": [1, 4, 16, 64],
        "pooling_layer": [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -12],
    }
    assert plan.base == Point(4096, 1, 25, {"max_seq_len": 25})
    assert (plan.num_repeat, plan.wait_till_ready, plan.vocab_file) == (10, 30, "README.md")
    assert plan.protocols == (FULL,)


def test_an_empty_list_skips_an_experiment() -> None:
    assert parse_plan(ONLY_BATCHES).experiments == {"client_batch_size": [1, 16]}


def test_an_experiment_varies_one_thing_only() -> None:
    plan = parse_plan(["-max_seq_len", "16", "-test_max_seq_len", "8", "-test_pooling_layer", "-1"])
    base = plan.base
    assert base == Point(4096, 1, 16, {})
    assert next(plan.points("client_batch_size")) == (1, Point(1, 1, 16, {}))
    assert list(plan.points("max_batch_size"))[1] == (32, Point(4096, 1, 16, {"max_batch_size": 32}))
    assert list(plan.points("max_seq_len")) == [(8, Point(4096, 1, 8, {"max_seq_len": 8}))]
    assert list(plan.points("num_client"))[3] == (64, Point(4096, 64, 16, {}))
    assert list(plan.points("pooling_layer")) == [(-1, Point(4096, 1, 16, {"pooling_layer": -1}))]


def test_server_flags_are_passed_on_and_those_of_the_point_override_them() -> None:
    plan = parse_plan(["-cpu", "-num_worker=2", "-pooling_layer", "-1", "-2", "-max_batch_size", "64"])
    point = Point(1, 1, 25, {"max_batch_size": 8})
    ports = {"port": 1, "port_out": 2}
    assert " ".join(plan.server_flags(point, ports)) == (
        "-pooling_layer -1 -2 -num_worker 2 -cpu true -max_batch_size 8 -host 127.0.0.1 -port 1 -port_out 2"
    )


def test_help_says_how_to_measure_less() -> None:
    text = benchmark_parser().format_help()
    assert "To save time, " in text
    assert "-test_pooling_layer -1 -6" in text
    assert "-num_worker" in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-num_repeat", "2"], "num_repeat must be more than 2"),
        (["-num_client", "0"], "num_client must be at least 1, got 0"),
        (["-test_num_client", "0"], "test_num_client must hold numbers from 1, got 0"),
        (["-port", "70000"], "port: input should be"),
        ([*ONLY_BATCHES, "-test_client_batch_size"], "nothing to measure"),
    ],
)
def test_bad_flags_are_named_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parse_plan(argv)
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_sentences_have_the_full_length_or_mixed_lengths() -> None:
    words = vocabulary_of("the cat saw the dog\nand ran")
    assert words == ["and", "cat", "dog", "ran", "saw", "the"]
    full = make_sentences(words, 50, 12, protocol=FULL, seed=0)
    assert {len(text.split()) for text in full} == {12}
    mixed = make_sentences(words, 500, 12, protocol=MIXED, seed=0)
    assert {len(text.split()) for text in mixed} == set(range(1, 13))
    assert full != make_sentences(words, 50, 12, protocol=FULL, seed=1)


def test_a_table_has_a_title_and_the_format_of_bert_as_service() -> None:
    results = [(1, Speeds((75.9,))), (4096, Speeds((473.2,)))]
    assert result_table("client_batch_size", FULL, results).splitlines() == [
        "",
        "**client_batch_size, full-length sentences**",
        "",
        "|`client_batch_size`\t|samples/s|",
        "|---|---|",
        "|1\t|75|",
        "|4096\t|473|",
        "",
        "client_batch_size = [1, 4096]",
        "speed = [75, 473]",
    ]


def test_the_table_of_num_client_has_the_speeds_of_one_client_and_of_all() -> None:
    table = result_table("num_client", MIXED, [(1, Speeds((473.0,))), (2, Speeds((260.0, 263.0)))])
    assert "**num_client, sentences of mixed length**" in table
    assert (
        "|`num_client`\t|samples/s|samples/s of all clients|\n|---|---|---|\n|1\t|473|473|\n|2\t|261|523|" in table
    )


def test_a_failed_measurement_is_a_dash() -> None:
    table = result_table("pooling_layer", FULL, [(-1, Speeds((10.0,))), (-12, None)])
    assert "|-12\t|-|" in table
    assert "speed = [10, None]" in table


def test_the_file_is_named_as_in_bert_as_service() -> None:
    assert result_file(2, is_half=False) == "benchmark-2.result"
    assert result_file(1, is_half=True) == "benchmark-1-fp16.result"
    assert parse_plan(["-dtype", "float16"]).is_half
