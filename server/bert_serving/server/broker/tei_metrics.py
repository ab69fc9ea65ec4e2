"""The names under which text-embeddings-inference has its metrics, so that dashboards made for it go on working.

They are untyped where TEI's name breaks Prometheus' rules (a counter without `_total`): queries do not look at the
type, promtool does. Durations are seconds. What TEI calls embed is every request here but those for a
classification head, which are predict.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from bert_serving.protocol import ServingError, Usage
from prometheus_client import Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_DURATIONS = tuple(1.5e-5 * 1.5**i for i in range(35))
_LENGTHS = tuple(float(2**i) for i in range(21))
_STAGES = ("duration", "tokenization_duration", "queue_duration", "inference_duration")

#: TEI's word for each of our error codes.
_FAILURES = {
    "overloaded": "overloaded",
    "payload_too_large": "batch_size",
    "invalid_request": "validation",
    "worker_failed": "inference",
    "unavailable": "dropped",
    "deadline_exceeded": "dropped",
    "internal": "inference",
    "unauthorized": "validation",
}
_FAILURE_NAMES = (*dict.fromkeys(_FAILURES.values()), "tokenization", "model_type", "missing_values")


@dataclass(slots=True)
class _Buckets:
    """A histogram that many values go into at once."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: Sequence[int]) -> None:
        found = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts))
        self.counts = (found + self.counts).tolist()
        self.total += sum(values)

    def family(self, name: str, documentation: str, *others: _Buckets) -> Metric:
        """Return the family of this histogram and the others, added up."""
        all_of_them = (self, *others)
        counts = [sum(column) for column in zip(*(each.counts for each in all_of_them), strict=True)]
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
        return HistogramMetricFamily(name, documentation, buckets, sum(each.total for each in all_of_them))


class TeiMetrics(Collector):
    """Counts requests in TEI's way. The three arguments are known already, under our own names."""

    def __init__(self, batch_texts: Histogram, batch_tokens: Histogram, queue_texts: Gauge) -> None:
        self._copies = {"te_batch_next_size": batch_texts, "te_batch_next_tokens": batch_tokens}
        self._queue_texts = queue_texts
        self._requests = dict.fromkeys(("single", "batch"), 0)
        self._successes = dict.fromkeys(("single", "batch"), 0)
        self._failures = dict.fromkeys(_FAILURE_NAMES, 0)
        self._counts = dict.fromkeys(("embed", "predict"), 0)
        self._done = dict.fromkeys(("embed", "predict"), 0)
        self._stages = {kind: {stage: _Buckets(_DURATIONS) for stage in _STAGES} for kind in ("embed", "predict")}
        self._input_length = _Buckets(_LENGTHS)

    def arrived(self, num_texts: int, *, is_predict: bool) -> None:
        """Count a request."""
        self._requests[_method(num_texts)] += 1
        self._counts[_kind(is_predict)] += num_texts

    def succeeded(self, num_texts: int, usage: Usage, *, is_predict: bool) -> None:
        """Count a request that was answered, and what it took."""
        self._successes[_method(num_texts)] += 1
        self._done[_kind(is_predict)] += num_texts
        times = (usage.total_ms, usage.tokenize_ms, usage.queue_ms, usage.compute_ms)
        for buckets, ms in zip(self._stages[_kind(is_predict)].values(), times, strict=True):
            buckets.observe(ms / 1000)
        self._input_length.observe_all(usage.num_tokens)

    def failed(self, error: ServingError) -> None:
        """Count a request that was answered with an error."""
        self._failures[_FAILURES[error.code]] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        yield _untyped("te_request_count", "Requests that arrived", "method", self._requests)
        yield _untyped("te_request_success", "Requests that were answered", "method", self._successes)
        yield _untyped("te_request_failure", "Requests that were answered with an error", "err", self._failures)
        for kind, count in self._counts.items():
            yield UnknownMetricFamily(f"te_{kind}_count", f"Texts to {kind} that arrived", count)
            yield UnknownMetricFamily(
                f"te_{kind}_success", f"Texts to {kind} that were answered", self._done[kind]
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


def _kind(is_predict: bool) -> str:
    return "predict" if is_predict else "embed"


def _untyped(name: str, documentation: str, label: str, values: Mapping[str, int]) -> Metric:
    family = UnknownMetricFamily(name, documentation, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _renamed(families: Iterable[Metric], name: str) -> Metric:
    """Return the only family under another name."""
    (family,) = families
    renamed = Metric(name, family.documentation, family.type)
    renamed.samples = [s._replace(name=name + s.name.removeprefix(family.name)) for s in family.samples]
    return renamed
