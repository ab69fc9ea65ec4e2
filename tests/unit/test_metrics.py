"""The metrics of the broker. All series exist from the start, with the value zero."""

from __future__ import annotations

import platform
from importlib.metadata import version

import pytest
from bert_serving.protocol import ERROR_CODES, ServingError
from bert_serving.server.broker.counting import Buckets, Histogram, LabelledNumbers
from bert_serving.server.broker.info_metrics import InfoMetrics
from bert_serving.server.broker.metrics import WORKER_STATES, BrokerMetrics
from bert_serving.server.broker.text_format import Registry
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
        "zeromq_requests refused_requests "
        "dropped_replies malformed_messages worker_restarts errors subscriptions device_busy_seconds",
        "gauge": "clients queue_texts queue_capacity_texts queue_age_seconds open_requests workers_ready "
        "held_bytes held_capacity_bytes flows outbox_bytes worker_state "
        "priority_queue_texts priority_queue_tokens priority_queue_age_seconds",
        "histogram": "request_seconds queue_seconds tokenize_seconds compute_seconds loop_turn_seconds "
        "batch_texts batch_tokens batch_fill_ratio",
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
    restarts = {s.labels["worker"]: s.value for s in families(metrics)["worker_restarts"].samples}
    assert restarts == {"worker-0": 0, "worker-1": 0}


def test_gateways_have_a_series_for_each() -> None:
    metrics = BrokerMetrics([], ["gateway-0", "gateway-1"])
    restarts = {s.labels["process"]: s.value for s in families(metrics)["gateway_restarts"].samples}
    assert restarts == {"gateway-0": 0, "gateway-1": 0}


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


def test_the_text_has_what_prometheus_client_reads() -> None:
    registry = Registry()
    about, model = 'a \\ and\na "quote" of 5 %', '50 % \\ "x"\n'
    gauge = LabelledNumbers("a_gauge", about, "gauge", "model")
    gauge.labels(model).set(2.5)
    histogram = Histogram("a_histogram", about, (0.1, 1.0))
    histogram.observe_all([0.1, 0.5, 7.0])
    registry.register(gauge, histogram)
    read = {family.name: family for family in text_string_to_metric_families(registry.snapshot().text())}
    assert read["a_gauge"].documentation == read["a_histogram"].documentation == about
    assert [(s.labels, s.value) for s in read["a_gauge"].samples] == [({"model": model}, 2.5)]
    buckets = [s.value for s in read["a_histogram"].samples]
    assert buckets == [1, 2, 3, 3, pytest.approx(7.6)]


@pytest.mark.parametrize("num_values", [1, 24, 25, 63, 64, 1000])
def test_buckets_count_few_and_many_values_alike(num_values: int) -> None:
    values = [i * 0.37 % 7 for i in range(num_values)]
    one_by_one, at_once = Buckets((0.5, 1.0, 5.0)), Buckets((0.5, 1.0, 5.0))
    for value in values:
        one_by_one.observe(value)
    at_once.observe_all(values)
    expected = [sum(low < v <= high for v in values) for low, high in ((-1, 0.5), (0.5, 1), (1, 5), (5, 9))]
    assert one_by_one.counts == at_once.counts == expected
    assert one_by_one.total == pytest.approx(at_once.total)
