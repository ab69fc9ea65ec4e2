"""A server with -otel_endpoint exports traces of its requests; without it, nothing changes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.protocol import InvalidRequest
from opentelemetry import trace
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import TracerProvider

from tests.support.code_blocks import blocks_run_by
from tests.support.running_server import RunningServer, run_start
from tests.support.trace_receiver import SOON, Span, TraceReceiver
from tests.support.waiting import HANG_S, wait_until

TEXT = "zanzibar"
_LOST = re.compile(r"bert_serving_(http_)?lost_spans_total ")
MODEL = "my-model"
(SHOWN,) = blocks_run_by(__file__)
STAGES = ("queue", "tokenize", "compute", "reply")
# In a trace that begins with a span of a test, which the receiver does not get.
REQUEST = (f"embeddings {MODEL}", *STAGES)


@pytest.fixture(scope="module")
def receiver() -> Iterator[TraceReceiver]:
    with TraceReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def traced(receiver: TraceReceiver, tiny: Path) -> Iterator[RunningServer]:
    shown = [word.replace("http://localhost:4318", receiver.endpoint) for word in SHOWN.start_options]
    assert receiver.endpoint in shown
    flags = (*shown, "-model_dir", tiny, "-cpu", "-served_model_name", MODEL)
    with RunningServer(*flags, "-access_log", "-log_format", "json", env=SOON) as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def tracer() -> trace.Tracer:
    """What a program has that uses OpenTelemetry itself."""
    return TracerProvider(shutdown_on_exit=False).get_tracer("test")


def ids_of(span: trace.Span) -> tuple[str, str]:
    assert isinstance(span, SdkSpan)
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def batch_of(receiver: TraceReceiver, request: Span) -> Span:
    """Wait for the batch that is linked to a request; return it."""

    def found() -> list[Span]:
        return [span for span in receiver.spans if span.name == "batch" and request.id in span.links]

    wait_until(lambda: bool(found()))
    (batch,) = found()
    return batch


def test_an_http_request_is_traced_from_the_caller_to_the_batch(
    traced: RunningServer, receiver: TraceReceiver
) -> None:
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {
        "traceparent": f"00-{trace_id}-{parent}-01",
        "tracestate": "vendor=value",
        "x-request-id": "mine",
    }
    url = f"{traced.url}/v1/embeddings?query={TEXT}"
    response = httpx.post(url, json={"input": [TEXT, "b"], "model": "any"}, headers=headers, timeout=HANG_S)
    assert response.status_code == 200
    usage, vector = response.json()["usage"], response.json()["data"][0]["embedding"]

    def spans() -> list[Span]:
        return receiver.of_trace(trace_id)

    wait_until(lambda: len(spans()) == 7, lambda: [span.name for span in spans()])
    by_name = {span.name: span for span in spans() if span.name != "reply"}
    http, request = by_name["POST /v1/embeddings"], by_name[f"embeddings {MODEL}"]
    assert (http.parent, http.kind) == (parent, "SERVER")
    assert (request.parent, request.kind) == (http.id, "INTERNAL")
    assert http.proto.trace_state == request.proto.trace_state == "vendor=value"
    assert {span.parent for span in spans() if span.name == "reply"} == {http.id, request.id}
    for name in ("queue", "tokenize", "compute"):
        assert by_name[name].parent == request.id
        assert request.contains(by_name[name])
    assert {name: http.attributes[name] for name in http.attributes if name != "network.protocol.version"} == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "bert_serving.request_id": "mine",
        "bert_serving.texts": 2,
        "bert_serving.tokens": usage["prompt_tokens"],
    }
    fingerprint = request.attributes["bert_serving.fingerprint"]
    assert len(fingerprint) == 16
    assert request.attributes == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "bert_serving",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.embeddings.dimension.count": len(vector),
        "bert_serving.texts": 2,
        "bert_serving.truncated": 0,
        "bert_serving.fingerprint": fingerprint,
    }
    assert http.resource["service.name"] == request.resource["service.name"] == "bert-serving"
    assert http.resource["bert_serving.process"] == "gateway"
    assert request.resource["bert_serving.process"] == "server"
    batch = batch_of(receiver, request)
    assert batch.trace_id != trace_id
    assert batch.parent == ""
    assert batch.attributes["bert_serving.worker"] == "worker-0"
    assert batch.attributes["bert_serving.tokens"] == usage["prompt_tokens"]
    for name in ("tokenize", "compute"):
        assert by_name[name].links == [batch.id]
        assert by_name[name].attributes["bert_serving.batch"] == batch.attributes["bert_serving.batch"]


def test_a_log_line_names_the_span_of_its_request(traced: RunningServer, receiver: TraceReceiver) -> None:
    httpx.post(f"{traced.url}/embed", json={"inputs": "a"}, headers={"x-request-id": "logged"}, timeout=HANG_S)
    traced.wait_for('"request_id": "logged"')
    lines = [json.loads(line) for line in traced.log.split("\n")[:-1]]
    (event,) = [line for line in lines if line.get("request_id") == "logged"]
    wait_until(lambda: any(span.name == "POST /embed" for span in receiver.of_trace(event["trace_id"])))
    (span,) = [span for span in receiver.of_trace(event["trace_id"]) if span.name == "POST /embed"]
    assert event["span_id"] == span.id
    assert span.parent == ""


def test_a_call_of_a_client_belongs_to_the_span_of_its_program(
    traced: RunningServer, receiver: TraceReceiver, tracer: trace.Tracer
) -> None:
    with BertClient(**traced.ports) as client, tracer.start_as_current_span("program") as span:
        client.encode([TEXT])
    trace_id, parent = ids_of(span)
    spans = receiver.wait_for(trace_id, *REQUEST)
    request = spans[f"embeddings {MODEL}"]
    assert (request.parent, request.kind) == (parent, "SERVER")
    assert {spans[name].parent for name in STAGES} == {request.id}
    assert spans["compute"].links == [batch_of(receiver, request).id]


def test_calls_to_fetch_later_and_from_other_threads_are_traced_too(
    traced: RunningServer, receiver: TraceReceiver, tracer: trace.Tracer
) -> None:
    with BertClient(**traced.ports) as client, tracer.start_as_current_span("program") as span:
        client.encode(["a"], blocking=False)
        client.fetch_all()
        list(client.encode_async([["b"]]))
    trace_id, _ = ids_of(span)
    wait_until(lambda: [each.name for each in receiver.of_trace(trace_id)].count(f"embeddings {MODEL}") == 2)


async def encode_in_a_span(traced: RunningServer, tracer: trace.Tracer) -> trace.Span:
    async with AsyncBertClient(**traced.ports) as client:
        with tracer.start_as_current_span("program") as span:
            await client.encode(["a"])
    return span


def test_a_call_of_the_async_client_belongs_to_the_span_of_its_program(
    traced: RunningServer, receiver: TraceReceiver, tracer: trace.Tracer
) -> None:
    trace_id, parent = ids_of(asyncio.run(encode_in_a_span(traced, tracer)))
    assert receiver.wait_for(trace_id, *REQUEST)[f"embeddings {MODEL}"].parent == parent


def test_one_batch_is_linked_to_each_of_its_requests(
    traced: RunningServer, receiver: TraceReceiver, tracer: trace.Tracer
) -> None:
    with BertClient(**traced.ports) as client, ThreadPoolExecutor(16) as pool:

        def call(number: int) -> str:
            with tracer.start_as_current_span("program") as span:
                client.encode([f"text {number} {i}" for i in range(64)])
            return ids_of(span)[0]

        def is_merged() -> bool:
            return any(len(span.links) > 1 for span in receiver.spans if span.name == "batch")

        def call_until_merged() -> bool:
            trace_ids.update(pool.map(call, range(32)))
            return is_merged()

        trace_ids: set[str] = set()
        wait_until(call_until_merged)
    batch = next(span for span in receiver.spans if span.name == "batch" and len(span.links) > 1)
    assert batch.attributes["bert_serving.requests"] == len(batch.links)

    def linked() -> set[str]:
        return {span.id for span in receiver.spans if span.trace_id in trace_ids} & set(batch.links)

    wait_until(lambda: linked() == set(batch.links))

    def linked_back() -> set[str]:
        return {span.parent for span in receiver.spans if span.name == "compute" and span.links == [batch.id]}

    wait_until(lambda: linked_back() == set(batch.links))


def test_a_request_that_fails_has_the_code_of_its_error(
    traced: RunningServer, receiver: TraceReceiver, tracer: trace.Tracer
) -> None:
    with (
        BertClient(**traced.ports) as client,
        tracer.start_as_current_span("program") as span,
        pytest.raises(InvalidRequest),
    ):
        client.encode([TEXT], prompt_name=TEXT)
    trace_id, _ = ids_of(span)
    request = receiver.wait_for(trace_id, f"embeddings {MODEL}", "queue", "tokenize", "compute")[
        f"embeddings {MODEL}"
    ]
    assert request.has_failed
    assert request.attributes["error.type"] == "invalid_request"


def test_a_caller_that_asks_for_no_trace_gets_none(traced: RunningServer, receiver: TraceReceiver) -> None:
    trace_id = "a" * 32
    headers = {"traceparent": f"00-{trace_id}-{'b' * 16}-00"}
    httpx.post(f"{traced.url}/embed", json={"inputs": "a"}, headers=headers, timeout=HANG_S)
    after = "c" * 32
    headers = {"traceparent": f"00-{after}-{'b' * 16}-01"}
    httpx.get(f"{traced.url}/{TEXT}", headers=headers, timeout=HANG_S)
    spans = receiver.wait_for(after, "GET")
    assert "http.route" not in spans["GET"].attributes
    assert not spans["GET"].has_failed
    assert receiver.of_trace(trace_id) == []


def test_the_tracestate_of_a_caller_may_come_in_several_headers(
    traced: RunningServer, receiver: TraceReceiver
) -> None:
    trace_id = "d" * 32
    headers = [("traceparent", f"00-{trace_id}-{'b' * 16}-01"), ("tracestate", "a=1"), ("tracestate", "b=2")]
    httpx.post(f"{traced.url}/embed", json={"inputs": "a"}, headers=headers, timeout=HANG_S)
    spans = receiver.wait_for(trace_id, "POST /embed", *REQUEST, "reply")
    assert {span.proto.trace_state for span in spans.values()} == {"a=1,b=2"}


def test_a_header_that_is_no_tracestate_is_not_logged(traced: RunningServer) -> None:
    headers = {"traceparent": f"00-{'e' * 32}-{'b' * 16}-01", "tracestate": f"{TEXT}, a"}
    httpx.post(f"{traced.url}/embed", json={"inputs": "a"}, headers=headers, timeout=HANG_S).raise_for_status()
    traced.wait_for(f"trace_id={'e' * 32}")
    assert TEXT not in traced.log


def test_no_span_has_a_text(traced: RunningServer, receiver: TraceReceiver) -> None:
    """The tests before this one have sent the text: as a text, a query, a path, and as the name of a prompt."""
    assert receiver.bodies
    assert not any(TEXT.encode() in body for body in receiver.bodies)
    assert TEXT not in traced.log


def test_a_receiver_that_is_down_fails_no_request_and_lost_spans_are_counted(tiny: Path) -> None:
    env = {**SOON, "OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
    flags = ("-model_dir", tiny, "-cpu", "-otel_endpoint", "http://127.0.0.1:9")
    with RunningServer(*flags, env=env) as running:
        running.wait_ready()
        with BertClient(**running.ports) as client:
            for number in range(5):
                client.encode([f"text {number}"])
                httpx.post(f"{running.url}/embed", json={"inputs": "a"}, timeout=HANG_S).raise_for_status()

        def lost() -> dict[str, float]:
            lines = httpx.get(f"{running.url}/metrics", timeout=HANG_S).text.splitlines()
            return {line.split()[0]: float(line.split()[1]) for line in lines if _LOST.match(line)}

        wait_until(lambda: len(lost()) == 2 and all(lost().values()), lambda: str(lost()))
        running.signal(15)
        assert running.wait_end() == 0


def test_without_the_extra_the_flag_is_an_error_and_the_variable_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    """FastAPI needs OpenTelemetry's API, so without the extra, only the SDK and the exporter are missing."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    env = {"PYTHONPATH": str(tmp_path)}
    done = run_start("-model_dir", tiny, "-cpu", "-otel_endpoint", "http://127.0.0.1:9", env=env)
    assert done.returncode == 1
    assert "-otel_endpoint needs the extra otel" in done.stderr
    assert "pip install 'bert-embedding-service[otel]'" in done.stderr
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    with RunningServer("-model_dir", tiny, "-cpu", env=env) as running:
        running.wait_for("WARNING server: there are no traces, although OTEL_EXPORTER_OTLP_ENDPOINT is set")
        running.wait_ready()


def test_a_password_in_a_variable_is_a_warning_without_it(tiny: Path) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@127.0.0.1:9"}
    with RunningServer("-model_dir", tiny, "-cpu", env=env) as running:
        running.wait_for("there are no traces: OTEL_EXPORTER_OTLP_ENDPOINT must not contain a password")
        running.wait_ready()
        assert "secret" not in running.log


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("client", "opentelemetry"),
        ("server.supervisor.serve", "opentelemetry"),
        ("server.worker.worker", "opentelemetry.sdk"),
        ("server.gateway.app", "opentelemetry.sdk"),  # FastAPI imports OpenTelemetry's API, which does nothing
    ],
)
def test_without_an_endpoint_opentelemetry_is_not_imported(module: str, absent: str) -> None:
    code = (
        f"import sys, bert_serving.{module}; assert not any(name.startswith({absent!r}) for name in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
