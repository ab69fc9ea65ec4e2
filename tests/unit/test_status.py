"""Replies to SHOW_CONFIG and SHOW_STATUS, compared with those of bert-as-service (here called the original)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from bert_serving.protocol.workers import Heartbeat, ModelFacts
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.statistic import Statistic
from bert_serving.server.broker.status import StatusReport
from bert_serving.server.broker.workers import WorkerView
from bert_serving.server.settings import Settings

from tests.support.model_facts import model_facts

NONE = type(None)

#: Every key of the original's config, with the JSON types of its value.
ORIGINAL_CONFIG: dict[str, tuple[type, ...]] = {
    # runtime
    "client": (str,),
    "num_process": (int,),
    "ventilator -> worker": (list,),
    "worker -> sink": (str,),
    "ventilator <-> sink": (str,),
    "server_current_time": (str,),
    "device_map": (list,),
    "num_concurrent_socket": (int,),
    # command-line arguments
    "ckpt_name": (str,),
    "config_name": (str,),
    "cors": (str,),
    "cpu": (bool,),
    "do_lower_case": (bool,),
    "fixed_embed_length": (bool,),
    "fp16": (bool,),
    "gpu_memory_fraction": (float,),
    "graph_tmp_dir": (str, NONE),
    "http_max_connect": (int,),
    "http_port": (int, NONE),
    "mask_cls_sep": (bool,),
    "max_batch_size": (int,),
    "max_seq_len": (int, NONE),
    "model_dir": (str,),
    "no_position_embeddings": (bool,),
    "no_special_token": (bool,),
    "num_labels": (int,),
    "num_worker": (int,),
    "pooling_layer": (list,),
    "pooling_strategy": (int, NONE),  # null: a strategy that the original does not have
    "port": (int,),
    "port_out": (int,),
    "prefetch_size": (int,),
    "priority_batch_size": (int,),
    "show_tokens_to_client": (bool,),
    "tuned_model_dir": (str, NONE),
    "verbose": (bool,),
    "xla": (bool,),
    # static
    "tensorflow_version": (list,),
    "python_version": (str,),
    "server_version": (str,),
    "pyzmq_version": (str,),
    "zmq_version": (str,),
    "server_start_time": (str,),
}

OWN_CONFIG: dict[str, tuple[type, ...]] = {"version": (str,), "torch_version": (str,), "pooling": (list,)}

STATUS: dict[str, tuple[type, ...]] = {
    "statistic": (dict,),
    "ready": (bool,),
    "model": (str,),
    "workers": (list,),
    "queue_texts": (int,),
    "open_requests": (int,),
    "connected_clients": (int,),
    "num_batch": (int,),
    "num_encoded_seq": (int,),
    "num_encoded_token": (int,),
}

#: Every key of the original's `statistic` after one request for vectors.
ORIGINAL_STATISTIC: dict[str, tuple[type, ...]] = {
    "num_data_request": (int,),
    "num_total_seq": (int,),
    "num_sys_request": (int,),
    "num_total_request": (int,),
    "num_total_client": (int,),
    "num_active_client": (int,),
    "avg_request_per_client": (float,),
    "min_request_per_client": (int,),
    "max_request_per_client": (int,),
    "num_min_request_per_client": (int,),
    "num_max_request_per_client": (int,),
    "avg_size_per_request": (float,),
    "min_size_per_request": (int,),
    "max_size_per_request": (int,),
    "num_min_size_per_request": (int,),
    "num_max_size_per_request": (int,),
    "avg_last_two_interval": (float,),
    "min_last_two_interval": (float,),
    "max_last_two_interval": (float,),
    "num_min_last_two_interval": (int,),
    "num_max_last_two_interval": (int,),
    "avg_request_per_second": (float,),
    "min_request_per_second": (float,),
    "max_request_per_second": (float,),
    "num_min_request_per_second": (int,),
    "num_max_request_per_second": (int,),
}


def make_report(statistic: Statistic | None = None, **settings: Any) -> StatusReport:
    resolved = Settings(**{"model_dir": "/model", "max_seq_len": 25, "num_worker": 2, **settings})
    workers = {name: WorkerView(name) for name in ("worker-0", "worker-1")}
    return StatusReport(
        resolved, BrokerMetrics(), workers, statistic or Statistic(0.0), worker_endpoint="ipc:///tmp/x/workers"
    )


def as_json(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the info as a client receives it."""
    found: dict[str, Any] = json.loads(json.dumps(info))
    return found


def assert_types(info: Mapping[str, Any], table: Mapping[str, tuple[type, ...]]) -> None:
    assert table.keys() <= info.keys()
    wrong = {key: info[key] for key, types in table.items() if type(info[key]) not in types}
    assert wrong == {}


def test_config_has_every_key_of_the_original_with_its_type() -> None:
    config = as_json(make_report().config(b"some-client"))
    assert_types(config, ORIGINAL_CONFIG)
    assert_types(config, OWN_CONFIG)
    assert all(isinstance(version, str) for version in config["tensorflow_version"])


def test_config_tells_whether_curve_is_on_and_nothing_about_keys() -> None:
    assert make_report().config(b"a")["curve"] is False
    config = make_report(curve_dir="/secret", api_key=("secret",), api_key_file="/secret").config(b"a")
    assert config["curve"] is True
    assert not {"api_key", "api_key_file", "curve_dir"} & config.keys()
    assert "secret" not in str(config)


def test_status_adds_the_statistic_and_the_workers() -> None:
    statistic = Statistic(0.0)
    statistic.count_texts(b"some-client", 3, 2.5)
    status = as_json(make_report(statistic).status(b"some-client", 3.0, loop_now=3.0, is_ready=True, model="A"))
    assert_types(status, ORIGINAL_CONFIG | STATUS)
    assert_types(status["statistic"], ORIGINAL_STATISTIC)
    assert status["statistic"].keys() == ORIGINAL_STATISTIC.keys()
    assert status["statistic"]["max_last_two_interval"] == 2.5


def test_a_ready_worker_shows_the_facts_of_its_model() -> None:
    view = WorkerView("worker-0", pid=1, facts=model_facts(), heartbeat=Heartbeat(2.0), heard_at=5.0)
    info = as_json(view.to_info(6.0))
    assert (info["name"], info["state"], info["forward_age_s"]) == ("worker-0", "ready", 3.0)
    assert info.keys() >= set(ModelFacts.__slots__) - {"labels"}
    assert "labels" not in info
    assert WorkerView("worker-1").to_info(6.0) == {"name": "worker-1", "state": "starting", "forward_age_s": None}


def test_labels_of_a_classification_head_are_in_config_and_status() -> None:
    views = {"worker-0": WorkerView("worker-0", pid=1, facts=model_facts(labels=("no", "yes")))}
    report = StatusReport(
        Settings(model_dir="/model", num_worker=1),
        BrokerMetrics(),
        views,
        Statistic(0.0),
        worker_endpoint="ipc:///x",
    )
    assert as_json(report.config(b"a"))["labels"] == ["no", "yes"]
    assert report.config(b"a")["num_labels"] == 2
    assert as_json(views["worker-0"].to_info(0.0))["labels"] == ["no", "yes"]


def test_computed_values_equal_those_of_the_original() -> None:
    config = make_report(
        cased_tokenization=True, http_port=8125, pooling_layer=(-1, -2), device_map=(3,), num_worker=2
    ).config(b"0123")
    assert config["server_version"] == "1.10.0"
    assert config["client"] == "0123"
    assert config["do_lower_case"] is False
    assert config["num_process"] == 4  # two workers, the gateway, and the server process
    assert config["ventilator -> worker"] == ["ipc:///tmp/x/workers"]
    assert config["pooling_layer"] == [-1, -2]
    assert config["device_map"] == [3]
    assert config["max_seq_len"] == 25


def test_an_identity_that_is_not_text_is_reported_with_escapes() -> None:
    assert as_json(make_report().config(b"\xff\x00a"))["client"] == "\\xff\x00a"


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (("auto",), 2),
        (("NONE",), 0),
        (("REDUCE_MAX",), 1),
        (("REDUCE_MEAN",), 2),
        (("REDUCE_MEAN_MAX",), 3),
        (("FIRST_TOKEN",), 4),
        (("CLS_TOKEN",), 4),
        (("LAST_TOKEN",), 5),
        (("SEP_TOKEN",), 5),
        (("CLS_POOLED",), 6),
        (("WEIGHTED_MEAN",), None),
        (("REDUCE_MEAN", "CLS_TOKEN"), None),
    ],
)
def test_pooling_strategy_is_the_number_of_the_original(names: tuple[str, ...], number: int | None) -> None:
    config = make_report(pooling_strategy=names).config(b"a")
    assert config["pooling_strategy"] == number
    assert config["pooling"] == list(names)


@pytest.mark.parametrize(
    ("modes", "number"),
    [
        ("cls", 4),
        ("max", 1),
        ("mean", 2),
        ("lasttoken", 5),
        ("weightedmean", None),
        (["cls", "mean"], None),
    ],
)
def test_pooling_of_a_sentence_transformers_folder_is_reported(
    tmp_path: Path, modes: str | list[str], number: int | None
) -> None:
    parts = [("Transformer", ""), ("Pooling", "pooling")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in parts]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "pooling").mkdir()
    (tmp_path / "pooling/config.json").write_text(json.dumps({"pooling_mode": modes}))

    def reported(**settings: Any) -> tuple[int | None, list[int]]:
        config = make_report(model_dir=str(tmp_path), **settings).config(b"a")
        return config["pooling_strategy"], config["pooling_layer"]

    assert reported() == (number, [-1])
    assert reported(pooling_strategy=("REDUCE_MAX",)) == (1, [-2])
    assert reported(pooling_layer=(-3,)) == (2, [-3])  # the option overrides the pooling of the folder


def test_pooling_of_a_plain_folder_is_the_originals_default(tmp_path: Path) -> None:
    config = make_report(model_dir=str(tmp_path)).config(b"a")
    assert (config["pooling_strategy"], config["pooling_layer"]) == (2, [-2])


def test_max_seq_len_none_is_null_as_in_the_original() -> None:
    config = as_json(make_report(max_seq_len="NONE").config(b"a"))
    assert_types(config, ORIGINAL_CONFIG)
    assert config["max_seq_len"] is None


def test_the_originals_dashboard_finds_every_value_that_it_reads() -> None:
    """The assertions follow the cards on bert-as-service's dashboard page, one by one."""
    statistic = Statistic(0.0)
    statistic.count_command(b"a")
    statistic.count_texts(b"a", 2, 4.0)
    statistic.count_texts(b"b", 1, 6.0)
    status = as_json(make_report(statistic, cpu=True).status(b"a", 6.0, loop_now=6.0, is_ready=True, model="A"))
    found = status["statistic"]
    assert (found["num_data_request"], found["num_sys_request"], found["num_total_client"]) == (2, 1, 2)
    assert 1 / found["min_last_two_interval"] == 0.5
    assert 1 / found["avg_last_two_interval"] == pytest.approx(1 / 3)
    assert [found[f"{kind}_request_per_client"] for kind in ("min", "avg", "max")] == [1, 1.5, 2]
    assert (status["server_version"], status["cpu"], status["num_worker"]) == ("1.10.0", True, 2)
    assert status["max_seq_len"] == 25
    assert datetime.fromisoformat(status["server_start_time"]).tzinfo is not None  # needed for the uptime


def test_torchs_version_is_reported_without_loading_it() -> None:
    code = (
        "import sys\n"
        "from bert_serving.server.broker.status import _torch_version\n"
        "print(_torch_version(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, loaded = done.stdout.split()
    assert (version[0].isdigit(), loaded) == (True, "False")
