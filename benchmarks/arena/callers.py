"""What a client does for one request: writes it, waits, and has the vectors as an array at the end."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from bert_serving.client import AsyncBertClient
from bert_serving.protocol import Rows

from benchmarks.arena.http_connection import HttpConnection, Response, request


class Caller(Protocol):
    """A client with at most one request at a time."""

    async def encode(self, texts: Sequence[str]) -> Rows:
        """Return the vectors of the texts, (B, D) float32."""

    async def close(self) -> None:
        """Close the connection."""


OpenCaller = Callable[[], Awaitable[Caller]]


@dataclass(frozen=True)
class Format:
    """How vectors are asked for and read over HTTP. field: of the texts. more: other fields of the body."""

    path: str
    field: str
    more: dict[str, Any]
    accept: str
    read: Callable[[Response], Rows]


def _from_floats(response: Response) -> Rows:
    return np.asarray([each["embedding"] for each in orjson.loads(response.body)["data"]], np.float32)


def _from_base64(response: Response) -> Rows:
    found = [base64.b64decode(each["embedding"]) for each in orjson.loads(response.body)["data"]]
    return np.frombuffer(b"".join(found), np.float32).reshape(len(found), -1)


def _from_raw(response: Response) -> Rows:
    shape = [int(size) for size in response.headers[b"x-shape"].split(b",")]
    return np.frombuffer(response.body, np.float32).reshape(shape)


def openai_floats(path: str) -> Format:
    """Return OpenAI's format with numbers in JSON."""
    return Format(path, "input", {"model": "arena"}, "application/json", _from_floats)


def openai_base64(path: str) -> Format:
    """Return OpenAI's format with base64."""
    more = {"model": "arena", "encoding_format": "base64"}
    return Format(path, "input", more, "application/json", _from_base64)


#: This service's fastest format: the bytes of the array.
RAW = Format("/embed", "inputs", {}, "application/octet-stream", _from_raw)


class HttpCaller:
    """A client over HTTP, with one connection that is kept."""

    def __init__(self, connection: HttpConnection, how: Format) -> None:
        self._connection, self._how = connection, how

    @classmethod
    async def open(cls, port: int, how: Format) -> HttpCaller:
        """Connect to a port of this machine."""
        return cls(await HttpConnection.open(port), how)

    async def encode(self, texts: Sequence[str]) -> Rows:
        """Return the vectors of the texts, (B, D) float32. Raises RuntimeError if the server refuses them."""
        how = self._how
        body = orjson.dumps({how.field: list(texts), **how.more})
        response = await self._connection.post(request(how.path, body, accept=how.accept))
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.body[:300]!r}")
        return how.read(response)

    async def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class BertCaller:
    """A client over ZeroMQ."""

    def __init__(self, client: AsyncBertClient) -> None:
        self._client = client

    @classmethod
    async def open(cls, port: int, port_out: int) -> BertCaller:
        """Connect to the ports of a server on this machine."""
        client = AsyncBertClient(ip="127.0.0.1", port=port, port_out=port_out, check_length=False)
        await client.server_config()
        return cls(client)

    async def encode(self, texts: Sequence[str]) -> Rows:
        """Return the vectors of the texts, (B, D) float32."""
        return await self._client.encode(list(texts))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
