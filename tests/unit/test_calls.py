"""What the headers of a request say: its caller, its deadline, and its names in logs."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from bert_serving.protocol import DeadlineExceeded, EncodeOptions, EncodeReply, Unavailable, Usage
from bert_serving.server.gateway.calls import REQUEST_ID, Call, call_of, path_of, request_id_of
from bert_serving.server.gateway.context import RequestContext
from bert_serving.server.gateway.dialect import BERT_AS_SERVICE, Handler
from bert_serving.server.gateway.errors import UnreadableBody
from bert_serving.server.gateway.keys import API_KEY
from bert_serving.server.gateway.tokenizing import TokenizeBody, decode, tokenize
from fastapi import APIRouter, Request, Response
from numpy import zeros
from starlette.types import Message

from tests.support.gateway import make_service
from tests.support.waiting import HANG_S

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def request_with(key: object = None, **headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "headers": pairs, "client": ("10.0.0.1", 5), REQUEST_ID: "my id"}
    return Request(scope if key is None else {**scope, API_KEY: key})


def test_a_flow_is_the_name_of_a_key_or_else_an_address() -> None:
    assert (call_of(request_with()).flow, call_of(request_with()).flow_share) == ("address:10.0.0.1", None)
    key = SimpleNamespace(name="alice", share=0.2)
    call = call_of(request_with(key, x_forwarded_for="10.9.9.9"))
    assert (call.flow, call.flow_share) == ("key:alice", 0.2)


def test_callers_on_a_unix_socket_are_one_flow() -> None:
    scope = {"type": "http", "headers": [], "client": ("unix", 0), REQUEST_ID: "my id"}
    assert call_of(Request(scope)).flow == "address:unix"


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/v1/embed"}, "/v1/embed"),
        ({"path": "/a/v1/embed", "root_path": "/a"}, "/v1/embed"),
        ({"path": "/a/files/v1", "root_path": "/a/files", "app_root_path": "/a"}, "/files/v1"),
    ],
)
def test_a_path_has_no_prefix(scope: dict[str, str], path: str) -> None:
    assert path_of(scope) == path


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE_ID}-b7ad6b7169203331-01", f"my id/{TRACE_ID}"),
        (f"cc-{TRACE_ID}-b7ad6b7169203331-01-more", f"my id/{TRACE_ID}"),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", "my id"),
        ("00-xyz-b7ad6b7169203331-01", "my id"),
        ("", "my id"),
    ],
)
def test_a_trace_has_the_request_id_and_the_trace_id(traceparent: str, trace: str) -> None:
    assert call_of(request_with(traceparent=traceparent)).trace == trace


@pytest.mark.parametrize("given", ["abc", "a" * 95, "a b/c"])
def test_the_callers_request_id_is_kept(given: str) -> None:
    assert request_id_of({"headers": [(b"x-request-id", given.encode())]}) == given


@pytest.mark.parametrize("given", [b"", b"a" * 96, b"\xff", b"a\tb"])
def test_another_request_id_is_replaced(given: bytes) -> None:
    assert len(request_id_of({"headers": [(b"x-request-id", given)]})) == 32


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "", "ten", "1" * 17, "\xb2"])
def test_a_timeout_that_is_not_a_whole_number_from_1_is_refused(given: str) -> None:
    with pytest.raises(UnreadableBody, match="X-Request-Timeout-Ms must be a whole number from 1"):
        call_of(request_with(x_request_timeout_ms=given))


def test_a_timeout_is_a_deadline_from_now_on() -> None:
    before = time.monotonic()
    call = call_of(request_with(x_request_timeout_ms="60000"))
    assert call.deadline is not None
    assert before + 60 <= call.deadline <= time.monotonic() + 60
    assert 0 < (call.remaining_ms() or 0) <= 60_000
    assert call_of(request_with()).remaining_ms() is None


class FakeClient:
    """Remembers the arguments of a call, and replies or raises an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: dict[str, Any] = {}

    async def encode_reply(self, texts: Any, options: Any, spans: Any, **asked: Any) -> tuple[int, EncodeReply]:
        self.asked = asked
        if self.error is not None:
            raise self.error
        usage = Usage([1] * len(texts), 0.0, 0.0, 0.0, 0.0)
        return 1, EncodeReply(b"a", b"1", zeros((len(texts), 2)), usage=usage)


def encode(client: FakeClient, call: Call) -> EncodeReply:
    service = make_service(client).for_call(call, None)
    return asyncio.run(service.encode_reply(["a"], EncodeOptions()))


def test_the_broker_gets_flow_deadline_and_trace_of_the_request() -> None:
    client = FakeClient()
    encode(client, Call("key:alice", 0.2, time.monotonic() + 60, 60_000, "my id"))
    timeout_ms = client.asked.pop("timeout_ms")
    assert 0 < timeout_ms <= 60_000
    assert client.asked == {"flow": "key:alice", "flow_share": 0.2, "trace": "my id"}


def test_a_request_whose_deadline_has_passed_is_not_sent() -> None:
    client = FakeClient()
    with pytest.raises(DeadlineExceeded, match="the deadline of 10 ms has passed"):
        encode(client, Call(deadline=time.monotonic() - 1, timeout_ms=10))
    assert client.asked == {}


def respond_within(timeout_ms: str, handler: Handler) -> Response:
    """Return the response to a request whose body arrives only in part."""

    async def receive() -> Message:
        if is_begun.done():
            await asyncio.Event().wait()
        is_begun.set_result(None)
        return {"type": "http.request", "body": b'{"inputs": ', "more_body": True}

    async def respond() -> Response:
        router = APIRouter()
        BERT_AS_SERVICE.add_routes(router, make_service(), ["/x"], handler, body=TokenizeBody)
        request = request_with(x_request_timeout_ms=timeout_ms)
        return await router.routes[0].handle_request(Request(request.scope, receive))  # type: ignore[attr-defined]

    is_begun: Future[None] = Future()
    return asyncio.run(asyncio.wait_for(respond(), HANG_S))


async def wait(context: RequestContext) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("handler", [tokenize, decode, wait], ids=["tokenize", "decode", "computes"])
def test_a_deadline_passes_while_the_body_arrives_or_while_the_gateway_computes(handler: Handler) -> None:
    response = respond_within("50", handler)
    assert response.status_code == 504
    assert b"the deadline of 50 ms has passed" in response.body


def test_a_timeout_is_a_passed_deadline_only_after_the_deadline() -> None:
    with pytest.raises(TimeoutError, match="no server"):
        encode(FakeClient(TimeoutError("no server")), Call(deadline=time.monotonic() + 60, timeout_ms=60_000))
    with pytest.raises(Unavailable):
        encode(FakeClient(Unavailable("gone")), Call())
