"""POST /encode/stream: a line of JSON for each text in, a line for each vector out, in order and without end.

Lines are encoded a few hundred at a time, a few such chunks at once. What is not read by the caller is not
computed: the body is read no further than the chunks that wait to be written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson
from bert_serving.protocol import (
    EncodeOptions,
    InvalidRequest,
    Overloaded,
    ServingError,
    Text,
    WorkerFailed,
    check_texts,
    options_from_json,
    split_rows,
)
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .dialect import Call, NotJson, Unprocessable
from .dialects.legacy import LEGACY, echo
from .output import Container, Dtype, convert, encoded
from .service import Service

log = logging.getLogger(__name__)

PATHS = frozenset({"/encode/stream"})

_CHUNK_LINES = 256
_CHUNK_OF_TOKENS = 16  # lines, where each is answered with many vectors
_OF_REPLIES = ("ragged", "show_tokens", "show_offsets", "show_usage")
_MAX_CHUNKS = 4  # at work or waiting to be written
_MAX_LINE_BYTES = 16 << 20
_MAX_STALL_S = 60.0  # in which a caller takes nothing of what is written


class Line(BaseModel):
    """A line of the body, which may also be the text alone. The options are query parameters."""

    text: str = Field(examples=["hello world"])
    id: Any = Field(None, description="comes back as it is; absent: the number of the line, from 0")


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as it was read. error: why it has no text."""

    line_id: Any
    text: Text | None
    error: ServingError | None = None


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the route to the router."""
    LEGACY.add(router, service, sorted(PATHS), encode_stream, body=Line)


async def encode_stream(call: Call) -> Response:
    """Return a line {"id", "embedding"} for each line of the body, in order; a bad one has "error" instead."""
    if call.request.headers.get("content-encoding", "identity") != "identity":
        raise NotJson("a stream may not come packed")
    options, container, dtype = _asked(dict(call.request.query_params))
    has_many = bool({"NONE", "SPLADE"} & set(options.pooling_strategy or ()))
    size = _CHUNK_OF_TOKENS if has_many else _CHUNK_LINES
    queue: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_MAX_CHUNKS)

    async def read() -> None:
        try:
            async for lines in _chunks(call, size):
                work = asyncio.create_task(_encode(call.service, lines, options, container, dtype))
                await queue.put(work)
        finally:
            await queue.put(None)

    async def write() -> AsyncGenerator[bytes]:
        reader = asyncio.create_task(read())
        try:
            while (work := await queue.get()) is not None:
                yield await work
            await reader
        finally:  # the caller may have gone
            reader.cancel()
            while not queue.empty():
                if (work := queue.get_nowait()) is not None:
                    work.cancel()

    return _Stream(write())


class _Stream(Response):
    """A response that goes out while the body still comes in.

    Starlette's own would read the body beside its handler, to learn whether the caller has gone.
    """

    media_type = "application/x-ndjson"

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Where it returns before the last message, the connection is cut: what was written is not all.
        async with aclosing(self._pieces) as pieces:
            try:
                async for piece in pieces:
                    message = {"type": "http.response.body", "body": piece, "more_body": True}
                    await asyncio.wait_for(send(message), _MAX_STALL_S)  # a caller may not hold this for ever
            except ClientDisconnect:
                return
            except asyncio.TimeoutError:
                log.warning("a caller took nothing of its stream for %g s: cut off", _MAX_STALL_S)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _asked(query: dict[str, str]) -> tuple[EncodeOptions, Container, Dtype | None]:
    """Return what the query parameters ask for. Raises Unprocessable."""
    container, dtype = query.pop("encoding_format", "float"), query.pop("output_dtype", None)
    if container not in ("float", "base64"):
        raise Unprocessable(f"encoding_format must be float or base64 in a stream, got {container!r}")
    if dtype not in (None, "float32", "float16", "int8", "uint8", "binary", "ubinary"):
        raise Unprocessable(
            f"output_dtype must be float32, float16, int8, uint8, binary or ubinary, got {dtype!r}"
        )
    if refused := [name for name in _OF_REPLIES if name in query]:
        raise Unprocessable(f"option {refused[0]!r} has no place in a stream: see /encode")
    try:
        options = options_from_json(
            {name: _value(name, value) for name, value in query.items()} | {"ragged": True}
        )
    except (TypeError, ValueError) as exc:
        raise Unprocessable(str(exc)) from exc
    return options, container, dtype  # type: ignore[return-value]


def _value(name: str, value: str) -> Any:
    """Return a query parameter as JSON has it; texts and names need no quotes."""
    if name in ("prompt", "prompt_name", "truncate", "long_text"):
        return value
    if name == "pooling_strategy":
        return value.split(",")
    try:
        return orjson.loads(value)
    except ValueError:
        return value


async def _chunks(call: Call, size: int) -> AsyncIterator[list[_Line]]:
    """Yield the lines of the body as they come, at most `size` at a time."""
    rest, number = b"", 0
    async for data in call.request.stream():
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            yield [_Line(number + len(whole), None, InvalidRequest(f"a line may have {_MAX_LINE_BYTES} bytes"))]
            return
        lines = [_read(line, number + i) for i, line in enumerate(whole) if line.strip()]
        number += len(whole)
        for start in range(0, len(lines), size):
            yield lines[start : start + size]
    if rest.strip():
        yield [_read(rest, number)]


def _read(line: bytes, number: int) -> _Line:
    """Return a line of the body, or why it is none."""
    line_id: Any = number
    try:
        value = orjson.loads(line)
        if isinstance(value, dict):
            line_id = echo(line, value["id"]) if "id" in value else number
            value = value.get("text")
        check_texts([value])
    except orjson.JSONDecodeError as exc:
        return _Line(line_id, None, InvalidRequest(f"the line is not JSON: {exc}"))
    except (TypeError, ValueError) as exc:  # InvalidRequest is a ValueError
        return _Line(line_id, None, InvalidRequest(str(exc)))
    return _Line(line_id, value)


async def _encode(
    service: Service, lines: list[_Line], options: EncodeOptions, container: Container, dtype: Dtype | None
) -> bytes:
    """Return the lines that answer the lines."""
    good = [line for line in lines if line.error is None and line.text is not None]
    answers = iter(await _vectors(service, [line.text for line in good if line.text is not None], options))
    found = [line.error if line.error is not None else next(answers) for line in lines]
    out = [_answer(line.line_id, answer, container, dtype) for line, answer in zip(lines, found, strict=True)]
    as_line = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(each, option=as_line) for each in out)


def _answer(line_id: Any, answer: Any, container: Container, dtype: Dtype | None) -> dict[str, Any]:
    """Return the answer to a line: its vectors and whether it was cut, or an error."""
    try:
        if not isinstance(answer, ServingError):  # which is not raised: a traceback would keep all lines alive
            rows, is_cut = answer
            cut = {"truncated": True} if is_cut else {}
            return {"id": line_id, "embedding": encoded(convert(rows, dtype), container), **cut}
        info = answer.to_info()
    except ServingError as exc:
        info = exc.to_info()
    return {"id": line_id, "error": {**info, "message": info["message"].replace("texts[0]", "text")}}


async def _vectors(service: Service, texts: list[Text], options: EncodeOptions) -> list[Any]:
    """Return for each text its vector, or vectors, and whether it was cut; or why it has none."""
    if not texts:
        return []
    while True:
        try:
            reply = await service.encode_reply(texts, options)
            break
        except Overloaded as exc:  # a stream has time
            await asyncio.sleep((exc.retry_after_ms or 1000) / 1000)
        except (InvalidRequest, WorkerFailed) as exc:
            if len(texts) == 1:
                return [exc]
            return [answer for text in texts for answer in await _vectors(service, [text], options)]
        except (ServingError, TimeoutError) as exc:
            error = exc if isinstance(exc, ServingError) else ServingError(str(exc))
            return [error] * len(texts)
    cut = set(reply.truncated)
    rows = reply.rows if reply.counts is None else split_rows(reply.rows, reply.counts)
    return [(of_text, i in cut) for i, of_text in enumerate(rows)]
