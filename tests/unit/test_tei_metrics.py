"""All metrics of TEI exist from the start, with TEI's labels and buckets."""

from __future__ import annotations

import pytest
from bert_serving.protocol import (
    ERROR_CODES,
    EncodeOptions,
    EncodeRequest,
    InvalidRequest,
    Overloaded,
    ServingError,
    Usage,
    WorkerFailed,
    error_from_info,
)
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.broker.tei_metrics import TeiMetrics
from prometheus_client.parser import text_string_to_metric_families

COUNTERS = {
    *(
        f'te_{name}{{method="{method}"}}'
        for name in ("request_count", "request_success")
        for method in ("single", "batch")
    ),
    *(
        f'te_request_failure{{err="{err}"}}'
        for err in (
            "overloaded",
            "batch_size",
            "validation",
            "tokenization",
            "inference",
            "dropped",
            "model_type",
            "missing_values",
        )
    ),
    *("te_embed_count", "te_embed_success", "te_predict_count", "te_predict_success", "te_queue_size"),
}
DURATIONS = {
    f"te_{kind}_{stage}"
    for kind in ("request", "embed", "predict")
    for stage in ("duration", "tokenization_duration", "queue_duration", "inference_duration")
}
SIZES = {"te_request_input_length", "te_batch_next_size", "te_batch_next_tokens"}


def make_metrics() -> tuple[BrokerMetrics, TeiMetrics]:
    metrics = BrokerMetrics()
    return metrics, TeiMetrics(metrics)


def request(num_texts: int, **options: object) -> EncodeRequest:
    return EncodeRequest(b"a-client", b"1", ["a"] * num_texts, EncodeOptions(**options))  # type: ignore[arg-type]


def samples(metrics: BrokerMetrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_every_name_exists_from_the_start_at_zero() -> None:
    found = {name: value for name, value in samples(make_metrics()[0]).items() if name.startswith("te_")}
    assert set(found.values()) == {0}
    plain = {name for name in found if "_bucket{" not in name}
    of_histograms = {f"{name}{end}" for name in DURATIONS | SIZES for end in ("_sum", "_count")}
    assert plain == COUNTERS | of_histograms


def test_buckets_equal_those_of_tei() -> None:
    found = samples(make_metrics()[0])
    for name in DURATIONS:
        bounds = [key.split('"')[1] for key in found if key.startswith(f"{name}_bucket")]
        assert bounds[-1] == "+Inf"
        assert [float(bound) for bound in bounds[:-1]] == pytest.approx([1.5e-5 * 1.5**i for i in range(35)])
    bounds = [key.split('"')[1] for key in found if key.startswith("te_request_input_length_bucket")]
    assert [float(bound) for bound in bounds[:-1]] == [2**i for i in range(21)]


def test_requests_are_counted_by_method_and_texts_by_kind() -> None:
    metrics, tei = make_metrics()
    classify = request(3, pooling_strategy=("LOGITS",))
    tei.request_arrived(request(1))
    tei.request_arrived(classify)
    usage = Usage([5, 9, 600], total_ms=10, queue_ms=1, tokenize_ms=2, compute_ms=7)
    tei.request_done(classify, usage)
    found = samples(metrics)
    assert found['te_request_count{method="single"}'] == found['te_request_count{method="batch"}'] == 1
    assert (found['te_request_success{method="single"}'], found['te_request_success{method="batch"}']) == (0, 1)
    assert (found["te_embed_count"], found["te_predict_count"]) == (1, 3)
    assert (found["te_embed_success"], found["te_predict_success"]) == (0, 3)
    for kind in ("request", "predict"):
        assert found[f"te_{kind}_duration_sum"] == pytest.approx(0.010)
        assert found[f"te_{kind}_tokenization_duration_sum"] == pytest.approx(0.002)
        assert found[f"te_{kind}_queue_duration_sum"] == pytest.approx(0.001)
        assert found[f"te_{kind}_inference_duration_sum"] == pytest.approx(0.007)
        assert found[f"te_{kind}_duration_count"] == 1
    assert found["te_embed_duration_count"] == 0
    assert (found["te_request_input_length_count"], found["te_request_input_length_sum"]) == (3, 614)
    in_buckets = {
        bound: found[f'te_request_input_length_bucket{{le="{bound}.0"}}'] for bound in (4, 8, 16, 512, 1024)
    }
    assert in_buckets == {4: 0, 8: 1, 16: 2, 512: 2, 1024: 3}


def test_a_request_that_cannot_be_read_counts_as_arrived() -> None:
    metrics, tei = make_metrics()
    tei.request_arrived(None)
    tei.request_failed(InvalidRequest("bad"))
    found = samples(metrics)
    assert (found['te_request_count{method="single"}'], found["te_embed_count"]) == (1, 1)


def test_batches_and_the_queue_are_counted_under_both_names() -> None:
    metrics, _ = make_metrics()
    metrics.batch_texts.observe(7)
    metrics.batch_tokens.observe(70)
    metrics.queue_texts.set(11)
    found = samples(metrics)
    assert (found["te_batch_next_size_sum"], found["te_batch_next_tokens_sum"], found["te_queue_size"]) == (
        7,
        70,
        11,
    )
    assert found['te_batch_next_size_bucket{le="8.0"}'] == found["te_batch_next_size_count"] == 1


@pytest.mark.parametrize(
    ("error", "err"),
    [
        (Overloaded("full"), "overloaded"),
        (InvalidRequest("bad"), "validation"),
        (WorkerFailed("died"), "inference"),
        *((error_from_info({"code": code}), None) for code in ERROR_CODES),
    ],
)
def test_each_of_our_errors_maps_to_an_error_of_tei(error: ServingError, err: str | None) -> None:
    metrics, tei = make_metrics()
    tei.request_failed(error)
    counted = {name: value for name, value in samples(metrics).items() if value and name.startswith("te_")}
    assert list(counted.values()) == [1]
    assert counted.keys() <= COUNTERS
    if err is not None:
        assert counted == {f'te_request_failure{{err="{err}"}}': 1}
