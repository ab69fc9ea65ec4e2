"""A stream of lines while the server is overloaded: it waits, until its deadline or until its caller leaves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from bert_serving.protocol import EncodeReply, Overloaded, Usage
from bert_serving.server.gateway.context import RequestContext
from bert_serving.server.gateway.stream import encode_stream
from fastapi import Request
from numpy import zeros

from tests.support.gateway import make_service
from tests.support.waiting import HANG_S


class OverloadedClient:
    """Refuses a number of requests, and then replies."""

    def __init__(self, num_refusals: float, retry_after_ms: int) -> None:
        self.num_refusals = num_refusals
        self.retry_after_ms = retry_after_ms
        self.num_requests = 0

    async def encode_reply(self, texts: Any, *_: object, **__: object) -> tuple[int, EncodeReply]:
        self.num_requests += 1
        if self.num_requests <= self.num_refusals:
            raise Overloaded("later", retry_after_ms=self.retry_after_ms)
        usage = Usage([1] * len(texts), 0.0, 0.0, 0.0, 0.0)
        return 1, EncodeReply(b"a", b"1", zeros((len(texts), 2)), usage=usage)


class Stream:
    """A request to /encode/stream with some lines, and the pieces of its response."""

    def __init__(self, client: OverloadedClient, num_lines: int, **headers: str) -> None:
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self._scope: dict[str, Any] = {"type": "http", "headers": pairs, "query_string": b""}
        self._body = b'"a"\n' * num_lines
        self._service = make_service(client)
        self._pieces: list[bytes] = []

    async def run(self) -> list[dict[str, Any]]:
        """Return the lines of the response."""
        context = RequestContext(Request(self._scope, self._receive), self._service)
        context.begin()
        response = await encode_stream(context)
        await response(self._scope, self._receive, self._send)
        return [json.loads(line) for line in b"".join(self._pieces).splitlines()]

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Any) -> None:
        self._pieces.append(message.get("body", b""))


HOUR_MS = 3_600_000


@pytest.mark.parametrize("num_lines", [1, 2000])
def test_a_stream_waits_for_an_overloaded_server_only_until_its_deadline(num_lines: int) -> None:
    stream = Stream(OverloadedClient(float("inf"), HOUR_MS), num_lines, x_request_timeout_ms="50")
    lines = asyncio.run(asyncio.wait_for(stream.run(), HANG_S))
    assert [line["id"] for line in lines] == list(range(num_lines))
    assert {line["error"]["code"] for line in lines} == {"deadline_exceeded"}
    assert {line["error"]["message"] for line in lines} == {"the deadline of 50 ms has passed"}


def test_a_stream_goes_on_when_the_server_is_no_longer_overloaded() -> None:
    client = OverloadedClient(3, 1)
    lines = asyncio.run(asyncio.wait_for(Stream(client, 5, x_request_timeout_ms=str(HOUR_MS)).run(), HANG_S))
    assert [line.keys() for line in lines] == [{"id", "embedding"}] * 5
    assert client.num_requests == 4


def test_nothing_waits_for_a_caller_that_has_left() -> None:
    client = OverloadedClient(float("inf"), HOUR_MS)

    async def leave() -> set[asyncio.Task[Any]]:
        others = asyncio.all_tasks()
        task = asyncio.create_task(Stream(client, 5000).run())
        while client.num_requests < 4:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if left := asyncio.all_tasks() - others:  # the tasks of its chunks were cancelled, and end soon
            await asyncio.wait(left, timeout=HANG_S / 2)
        return asyncio.all_tasks() - others

    assert asyncio.run(asyncio.wait_for(leave(), HANG_S)) == set()
