"""Metrics under the names of text-embeddings-inference (TEI), so that dashboards made for TEI work here too.

Counters are exported as untyped: in Prometheus, the name of a counter must end with `_total`, but TEI's names do
not. Queries ignore the type, but promtool checks it. Durations are in seconds. A request for the outputs of a
classification head counts as "predict"; every other request counts as "embed".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bert_serving.protocol import (
    DeadlineExceeded,
    EncodeRequest,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
    Usage,
    WorkerFailed,
)
from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from .counting import Buckets
from .metrics import BrokerMetrics

_DURATIONS = tuple(1.5e-5 * 1.5**i for i in range(35))
_LENGTHS = tuple(float(2**i) for i in range(21))
_STAGES = ("duration", "tokenization_duration", "queue_duration", "inference_duration")

#: Error code of this server -> TEI's name for such a failure.
_FAILURES = {
    Overloaded.code: "overloaded",
    PayloadTooLarge.code: "batch_size",
    InvalidRequest.code: "validation",
    Unauthorized.code: "validation",
    WorkerFailed.code: "inference",
    ServingError.code: "inference",
    Unavailable.code: "dropped",
    DeadlineExceeded.code: "dropped",
}
_FAILURE_NAMES = (*dict.fromkeys(_FAILURES.values()), "tokenization", "model_type", "missing_values")
_PREDICT_STRATEGIES = {"LOGITS", "CLASSIFICATION", "REGRESSION"}


class TeiMetrics(Collector):
    """Counts requests as TEI does. The broker calls it as a BrokerObserver.

    Some metrics of TEI exist in BrokerMetrics under other names; they are copied from there.
    """

    def __init__(self, ours: BrokerMetrics) -> None:
        self._copies = {"te_batch_next_size": ours.batch_texts, "te_batch_next_tokens": ours.batch_tokens}
        self._queue_texts = ours.queue_texts
        self._requests = dict.fromkeys(("single", "batch"), 0)
        self._successes = dict.fromkeys(("single", "batch"), 0)
        self._failures = dict.fromkeys(_FAILURE_NAMES, 0)
        self._counts = dict.fromkeys(("embed", "predict"), 0)
        self._done = dict.fromkeys(("embed", "predict"), 0)
        self._stages = {kind: {stage: Buckets(_DURATIONS) for stage in _STAGES} for kind in ("embed", "predict")}
        self._input_length = Buckets(_LENGTHS)
        ours.registry.register(self)

    def request_arrived(self, request: EncodeRequest | None) -> None:
        """Count a request, even if it cannot be read: there must never be more failures than requests."""
        num_texts = 1 if request is None else len(request.texts)
        self._requests[_method(num_texts)] += 1
        self._counts[_kind(request)] += num_texts

    def request_done(self, request: EncodeRequest, usage: Usage) -> None:
        """Count a request whose vectors are computed, with its times and its tokens."""
        num_texts, kind = len(request.texts), _kind(request)
        self._successes[_method(num_texts)] += 1
        self._done[kind] += num_texts
        times = (usage.total_ms, usage.tokenize_ms, usage.queue_ms, usage.compute_ms)
        for buckets, ms in zip(self._stages[kind].values(), times, strict=True):
            buckets.observe(ms / 1000)
        self._input_length.observe_all(usage.num_tokens)

    def request_failed(self, error: ServingError) -> None:
        """Count a request that gets an error."""
        self._failures[_FAILURES[error.code]] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        yield _untyped("te_request_count", "Requests that arrived", "method", self._requests)
        yield _untyped("te_request_success", "Requests that got their vectors", "method", self._successes)
        yield _untyped("te_request_failure", "Requests that got an error", "err", self._failures)
        for kind, count in self._counts.items():
            yield UnknownMetricFamily(f"te_{kind}_count", f"Texts to {kind} that arrived", count)
            yield UnknownMetricFamily(
                f"te_{kind}_success", f"Texts to {kind} that got their vectors", self._done[kind]
            )
        for stage in _STAGES:
            embed, predict = self._stages["embed"][stage], self._stages["predict"][stage]
            yield embed.family(f"te_request_{stage}", f"Seconds of a request: {stage}", predict)
            yield embed.family(f"te_embed_{stage}", f"Seconds of a request to embed: {stage}")
            yield predict.family(f"te_predict_{stage}", f"Seconds of a request to classify: {stage}")
        yield self._input_length.family("te_request_input_length", "Tokens of a text")
        for name, histogram in self._copies.items():
            yield _renamed(histogram.collect(), name)
        size = next(iter(self._queue_texts.collect())).samples[0].value
        yield GaugeMetricFamily("te_queue_size", "Texts that wait for a worker", size)


def _method(num_texts: int) -> str:
    return "single" if num_texts == 1 else "batch"


def _kind(request: EncodeRequest | None) -> str:
    strategies = request.options.pooling_strategy if request is not None else None
    return "predict" if strategies and not _PREDICT_STRATEGIES.isdisjoint(strategies) else "embed"


def _untyped(name: str, documentation: str, label: str, values: Mapping[str, int]) -> Metric:
    family = UnknownMetricFamily(name, documentation, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _renamed(families: Iterable[Metric], name: str) -> Metric:
    """Return the one family in `families` under another name."""
    (family,) = families
    renamed = Metric(name, family.documentation, family.type)
    renamed.samples = [s._replace(name=name + s.name.removeprefix(family.name)) for s in family.samples]
    return renamed
