"""When traces are exported; and spans that are lost, because the queue is full or the receiver is down."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from bert_serving.otel.export import BoundedProcessor, CountedExporter
from bert_serving.otel.jobs import JobTraces
from bert_serving.server.broker.counting import Counter
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.startup import StartError
from bert_serving.server.supervisor.tracing import tracing_of
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

ENDPOINT = "http://collector:4318"


@pytest.mark.parametrize(
    ("flag", "env", "is_wanted"),
    [
        (None, {}, False),
        (ENDPOINT, {}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{ENDPOINT}/v1/traces"}, True),
        (ENDPOINT, {"OTEL_SDK_DISABLED": "true"}, False),
        (ENDPOINT, {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_off_without_an_endpoint(flag: str | None, env: dict[str, str], is_wanted: bool) -> None:
    found = tracing_of(Settings(otel_endpoint=flag), env)
    assert (found is not None) == is_wanted
    if found is not None:
        assert found.endpoint == flag


def test_a_variable_that_the_sdk_refuses_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "-3")
    found = tracing_of(Settings(otel_endpoint=ENDPOINT))
    assert found is not None
    with pytest.raises(StartError, match=r"variables OTEL_.*OTEL_SPAN_LINK_COUNT_LIMIT must be"):
        found.job_tracer(Counter("bert_serving_lost_spans", "Lost"))


def test_the_endpoint_must_be_an_address() -> None:
    with pytest.raises(ValueError, match="must begin with http:// or https://, got 'collector:4318'"):
        Settings(otel_endpoint="collector:4318")
    with pytest.raises(ValueError, match=r"must name a host, such as .*, got 'http://:4318'"):
        Settings(otel_endpoint="http://:4318")


BAD = {
    "collector:4318": "must begin with http:// or https://, got 'collector:4318'",
    "grpc://collector:4317": "must begin with http:// or https://, got 'grpc://collector:4317'",
    "http://": "must name a host",
    "http:///v1/traces": "must name a host",
    "http://collector:port": "must name a host",
    "http://[::1": "must name a host",
    "http://a b:4318": "must name a host",
}


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize("address", BAD)
def test_an_address_in_a_variable_that_cannot_be_used_is_a_warning(
    variable: str, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing_of(Settings(), {variable: address, "OTEL_TRACES_EXPORTER": "none"}) is None
    assert tracing_of(Settings(otel_endpoint=ENDPOINT), {variable: address}) is not None  # the flag counts
    assert caplog.messages == []
    assert tracing_of(Settings(), {variable: address}) is None
    (message,) = caplog.messages
    assert message.startswith(f"there are no traces: {variable} {BAD[address]}")


def test_the_variable_for_traces_alone_counts_if_both_are_set() -> None:
    both = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}
    found = tracing_of(Settings(), both)
    assert found is not None
    assert found.endpoint is None  # the SDK reads the variable


def test_an_empty_variable_does_not_count() -> None:
    both = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}
    found = tracing_of(Settings(), both)
    assert found is not None
    assert found.endpoint == ENDPOINT


@pytest.mark.parametrize(
    "address",
    ["http://user:secret@collector:4318", "user:secret@collector:4318", "http://collector:4318/?key=secret"],
)
def test_a_secret_in_an_address_is_refused_and_in_no_message(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="otel_endpoint must not contain a password") as of_flag:
        Settings(otel_endpoint=address)
    assert tracing_of(Settings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": address}) is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT must not contain a password" in caplog.text
    assert "secret" not in f"{of_flag.value} {caplog.text}"


def test_an_at_sign_in_a_path_is_no_password() -> None:
    assert Settings(otel_endpoint="http://collector:4318/a@b").otel_endpoint == "http://collector:4318/a@b"


class FakeReceiver(SpanExporter):
    """Takes spans, or does not. num_seen: how many it was given."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.num_seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_seen += len(spans)
        return self.result


class Spans:
    """A queue of two spans. lost: how many spans were lost each time."""

    def __init__(self, receiver: FakeReceiver, sampler: sampling.Sampler = sampling.ALWAYS_ON) -> None:
        self.lost: list[int] = []
        self.processor = BoundedProcessor(CountedExporter(receiver, self.lost.append), self.lost.append)
        provider = TracerProvider(sampler, shutdown_on_exit=False)
        provider.add_span_processor(self.processor)
        self._tracer = provider.get_tracer("test")

    def end(self, count: int) -> None:
        for _ in range(count):
            self._tracer.start_span("span").end()


@pytest.fixture(autouse=True)
def _small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")


def test_spans_that_cannot_be_sent_are_counted_as_lost() -> None:
    receiver = FakeReceiver(SpanExportResult.FAILURE)
    spans = Spans(receiver)
    spans.end(1)
    spans.processor.force_flush()
    assert (receiver.num_seen, spans.lost) == (1, [1])


def test_a_span_that_finds_the_queue_full_is_lost_and_the_queue_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    receiver = FakeReceiver()
    spans = Spans(receiver)
    spans.processor._batch_processor._export_lock.acquire()  # as if the receiver did not answer
    spans.end(5)
    assert spans.lost == [1, 1, 1]
    spans.processor._batch_processor._export_lock.release()
    spans.processor.force_flush()
    spans.end(1)
    spans.processor.force_flush()
    assert (receiver.num_seen, spans.lost) == (3, [1, 1, 1])


def test_a_queue_may_be_smaller_than_the_usual_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    spans = Spans(FakeReceiver(SpanExportResult.FAILURE))
    spans.end(1)
    spans.processor.shutdown()
    assert sum(spans.lost) == 1


def test_a_span_that_is_not_sampled_takes_no_place() -> None:
    receiver = FakeReceiver()
    spans = Spans(receiver, sampling.ALWAYS_OFF)
    spans.end(5)
    spans.processor.force_flush()
    assert (receiver.num_seen, spans.lost) == (0, [])


def test_a_trace_that_cannot_be_made_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    traces = JobTraces(ENDPOINT, model_name="a model", version="1", on_lost=lambda _: None)
    with caplog.at_level(logging.ERROR):
        assert traces.begin(None, 0.0, is_from_gateway=False) is None
        traces.done(None, 0.0, 0.0)
    assert caplog.messages == ["cannot make a span"] * 2
