"""The metrics of the broker. All series exist from the start, with the value zero."""

from __future__ import annotations

import platform
from importlib.metadata import version

from bert_serving.protocol import ERROR_CODES, ServingError
from bert_serving.server.broker.info_metrics import InfoMetrics
from bert_serving.server.broker.metrics import WORKER_STATES, BrokerMetrics
from bert_serving.server.broker.workers import WorkerView
from bert_serving.server.settings import Settings, own_version
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.model_facts import model_facts


def families(metrics: BrokerMetrics) -> dict[str, Metric]:
    return {
        family.name.removeprefix("bert_serving_"): family
        for family in text_string_to_metric_families(metrics.text())
    }


def test_every_metric_exists_from_the_start() -> None:
    found = families(BrokerMetrics(["worker-0"]))
    kinds = {
        "counter": "requests commands texts tokens padding_tokens truncated_texts batches cancelled_requests "
        "dropped_replies malformed_messages worker_restarts errors subscriptions device_busy_seconds",
        "gauge": "clients queue_texts queue_capacity_texts queue_age_seconds open_requests workers_ready "
        "held_bytes held_capacity_bytes flows outbox_bytes worker_state",
        "histogram": "request_seconds queue_seconds tokenize_seconds compute_seconds loop_turn_seconds "
        "batch_texts batch_tokens",
    }
    for kind, names in kinds.items():
        for name in names.split():
            assert found[name].type == kind, name
            assert found[name].documentation
            assert found[name].samples


def test_errors_have_a_series_for_each_code() -> None:
    codes = {cls.code for cls in {ServingError} | _all_subclasses(ServingError)}
    assert set(ERROR_CODES) == codes
    found = {sample.labels["code"]: sample.value for sample in families(BrokerMetrics())["errors"].samples}
    assert found == dict.fromkeys(ERROR_CODES, 0)


def test_a_worker_is_in_one_state() -> None:
    metrics = BrokerMetrics(["worker-0", "worker-1"])
    metrics.set_worker_state("worker-1", "ready")
    states = {(s.labels["worker"], s.labels["state"]): s.value for s in families(metrics)["worker_state"].samples}
    assert {key for key, value in states.items() if value} == {("worker-0", "starting"), ("worker-1", "ready")}
    assert len(states) == 2 * len(WORKER_STATES)
    busy = {s.labels["worker"]: s.value for s in families(metrics)["device_busy_seconds"].samples}
    assert busy == {"worker-0": 0, "worker-1": 0}


def test_duration_buckets_reach_to_minutes() -> None:
    metrics = BrokerMetrics()
    for seconds in (0.0009, 0.02, 0.12, 200, 1000):
        metrics.latency.observe(seconds)
    buckets = {s.labels["le"]: s.value for s in families(metrics)["request_seconds"].samples if "le" in s.labels}
    bounds = ("0.001", "0.025", "0.1", "0.15", "300.0", "+Inf")
    assert [buckets[bound] for bound in bounds] == [1, 2, 2, 3, 4, 5]


def test_models_and_versions_are_labels() -> None:
    metrics = BrokerMetrics()
    workers = {"worker-0": WorkerView("worker-0"), "worker-1": WorkerView("worker-1", 7, model_facts())}
    InfoMetrics(metrics.registry, Settings(served_model_name="a-model", revision="v1"), workers)
    found = families(metrics)
    (build,), (model,) = found["build_info"].samples, found["model_info"].samples
    assert build.labels == {
        "version": own_version(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    facts = model_facts().to_info()
    names = ("fingerprint", "kind", "device", "dtype", "dimension", "max_seq_len")
    of_model = {"worker": "worker-1", "model": "a-model", "revision": "v1"}
    assert model.labels == {**of_model, **{name: str(facts[name]) for name in names}}
    assert build.value == model.value == 1


def _all_subclasses(cls: type[ServingError]) -> set[type[ServingError]]:
    below = cls.__subclasses__()
    return {*below, *(found for each in below for found in _all_subclasses(each))}
