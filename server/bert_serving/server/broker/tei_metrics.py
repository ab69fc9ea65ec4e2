"""Metrics under the names of text-embeddings-inference (TEI), so that dashboards made for TEI work here too.

Counters are exported as untyped: in Prometheus, the name of a counter must end with `_total`, but TEI's names do
not. Queries ignore the type, but promtool checks it. Durations are in seconds. A request for the outputs of a
classification head counts as "predict"; every other request counts as "embed".
"""

from __future__ import annotations

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

from .counting import Buckets, Gauge, LabelledNumbers, SummedHistogram
from .metrics import BrokerMetrics
from .text_format import Family

_DURATIONS = tuple(1.5e-5 * 1.5**i for i in range(35))
_LENGTHS = tuple(float(2**i) for i in range(21))
_STAGES = {
    "duration": "Seconds from the arrival of a request to its reply",
    "tokenization_duration": "Seconds for the tokenizer",
    "queue_duration": "Seconds in the queue",
    "inference_duration": "Seconds for the model",
}

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


class TeiMetrics:
    """Counts requests as TEI does. The broker calls it as a BrokerObserver.

    Some metrics of TEI exist in BrokerMetrics under other names; they are copied from there.
    """

    def __init__(self, ours: BrokerMetrics) -> None:
        methods, kinds = ("single", "batch"), ("embed", "predict")
        self._requests = _untyped("te_request_count", "Requests that arrived", "method", *methods)
        self._successes = _untyped("te_request_success", "Requests that got their vectors", "method", *methods)
        self._failures = _untyped("te_request_failure", "Requests that got an error", "err", *_FAILURE_NAMES)
        verbs = dict(zip(kinds, (("embed", "vectors"), ("classify", "scores")), strict=True))
        self._counts = {
            kind: _untyped(f"te_{kind}_count", f"Texts to {verb} that arrived")
            for kind, (verb, _) in verbs.items()
        }
        self._done = {
            kind: _untyped(f"te_{kind}_success", f"Texts to {verb} that got their {result}")
            for kind, (verb, result) in verbs.items()
        }
        self._stages = {kind: {stage: Buckets(_DURATIONS) for stage in _STAGES} for kind in kinds}
        self._input_length = Buckets(_LENGTHS)
        ours.registry.register(
            *(self._requests, self._successes, self._failures),
            *(self._counts["embed"], self._done["embed"], self._counts["predict"], self._done["predict"]),
            *self._durations(),
            SummedHistogram("te_request_input_length", "Tokens of a text", self._input_length),
            SummedHistogram("te_batch_next_size", "Texts in a batch", ours.batch_texts),
            SummedHistogram("te_batch_next_tokens", "Tokens in a batch", ours.batch_tokens),
            _QueueSize(ours.queue_texts),
        )

    def _durations(self) -> list[Family]:
        """Return the histograms of the stages: of all requests, and of those of each kind."""
        kinds = {"request": ("embed", "predict"), "embed": ("embed",), "predict": ("predict",)}
        of_which = {"request": "", "embed": ", of requests to embed", "predict": ", of requests to classify"}
        return [
            SummedHistogram(
                f"te_{name}_{stage}", f"{about}{of_which[name]}", *(self._stages[kind][stage] for kind in counted)
            )
            for name, counted in kinds.items()
            for stage, about in _STAGES.items()
        ]

    def request_arrived(self, request: EncodeRequest | None) -> None:
        """Count a request, even if it cannot be read: there must never be more failures than requests."""
        num_texts = 1 if request is None else len(request.texts)
        self._requests.labels(_method(num_texts)).inc()
        self._counts[_kind(request)].labels().inc(num_texts)

    def request_done(self, request: EncodeRequest, usage: Usage) -> None:
        """Count a request whose vectors are computed, with its times and its tokens."""
        num_texts, kind = len(request.texts), _kind(request)
        self._successes.labels(_method(num_texts)).inc()
        self._done[kind].labels().inc(num_texts)
        times = (usage.total_ms, usage.tokenize_ms, usage.queue_ms, usage.compute_ms)
        for buckets, ms in zip(self._stages[kind].values(), times, strict=True):
            buckets.observe(ms / 1000)
        self._input_length.observe_all(usage.num_tokens)

    def request_failed(self, error: ServingError) -> None:
        """Count a request that gets an error."""
        self._failures.labels(_FAILURES[error.code]).inc()


class _QueueSize:
    """Shows a gauge of ours under TEI's name."""

    def __init__(self, ours: Gauge) -> None:
        self.template = Gauge("te_queue_size", "Texts that wait for a worker").template
        self.numbers = ours.numbers


def _method(num_texts: int) -> str:
    return "single" if num_texts == 1 else "batch"


def _kind(request: EncodeRequest | None) -> str:
    strategies = request.options.pooling_strategy if request is not None else None
    return "predict" if strategies and not _PREDICT_STRATEGIES.isdisjoint(strategies) else "embed"


def _untyped(name: str, documentation: str, *label_and_values: str) -> LabelledNumbers:
    """Return a counter with all its series. label_and_values: the name of its label, if any, and the values."""
    counter = LabelledNumbers(name, documentation, "untyped", *label_and_values[:1])
    for value in label_and_values[1:]:
        counter.labels(value)
    if not label_and_values:
        counter.labels()
    return counter
