"""POST /encode/stream: reads one line of JSON for each text, and returns one line for each, in the same order.

Lines are encoded in chunks, a few chunks at once. The body is read only as fast as the caller reads the response.
So a caller that stops reading causes no more work, and the memory for one stream is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NotRequired, TypeAlias, TypeVar, cast

import orjson
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    InvalidRequest,
    Overloaded,
    Rows,
    ServingError,
    Text,
    WorkerFailed,
    error_from_info,
    options_from_json,
    parse_json,
    shortened,
    split_rows,
)
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, RootModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from ..number_formats import DTYPES, Dtype
from .context import RequestContext
from .dialect import BERT_AS_SERVICE
from .echo import echo
from .errors import Unprocessable, UnreadableBody
from .memory import RequestMemory
from .openapi import Docs
from .output import Container, convert, encoded
from .service import Service
from .texts import TextNotes, readable_texts

PATHS = frozenset({"/encode/stream"})

_CHUNK_LINES = 256
_CHUNK_LINES_OF_TOKENS = 16  # lines in a chunk if each line gets many vectors
_CONTAINERS: tuple[Container, ...] = ("float", "base64")
_REPLY_OPTIONS = ("ragged", "show_tokens", "show_offsets", "show_usage")  # refused: they concern a whole reply
_MAX_CHUNKS = 4  # number of chunks that are computed or wait to be written
_MAX_LINE_BYTES = 1 << 20

_T = TypeVar("_T", bound=str)

#: The vector or vectors of a text, and whether the text was truncated; or the error, if the text has no vector.
#: Errors are not raised: a traceback would keep all lines of the chunk in memory.
_Result: TypeAlias = "tuple[Rows, bool] | ServingError"


class TextWithId(BaseModel):
    text: str
    id: object = Field(None, description="returned as it was sent; default: the number of the line, from 0")


class Line(RootModel[str | TextWithId]):
    """A line of the body: a text, or a text with an id. Options are query parameters."""


class EncodedLine(TypedDict):
    """The vector or the vectors of a line, as numbers or as base64."""

    id: object
    embedding: list[float] | list[list[float]] | str | list[str]
    truncated: NotRequired[Literal[True]]
    dropped_characters: NotRequired[int]


class LineError(TypedDict):
    code: str
    message: str
    retry_after_ms: NotRequired[int]


class FailedLine(TypedDict):
    """A line that has no vector."""

    id: object
    error: LineError


class StreamQuery(TypedDict, total=False):  # it only documents the route: `_options` does the checks
    """The options of a stream; see the field "options" of /encode."""

    encoding_format: Literal["float", "base64"]
    output_dtype: Dtype
    pooling_strategy: Annotated[str, Field(description="names, separated by commas")]
    pooling_layer: int
    normalize: bool
    dimensions: Annotated[int, Field(ge=1)]
    truncate: Literal["right", "left", "error"]
    long_text: Literal["truncate", "chunk"]
    prompt: str
    prompt_name: str
    pairs: bool


_EXAMPLES = {
    "a line for each text": '{"id": "a", "text": "hello world"}\n{"id": "b", "text": "one two three"}\n',
    "texts alone": '"hello world"\n"one two three"\n',
}


@dataclass(frozen=True, slots=True)
class _Line:
    """A parsed line. error: why the line has no text. num_dropped: see TextNotes."""

    line_id: object
    text: Text | None
    error: ServingError | None = None
    num_dropped: int = 0


@dataclass(frozen=True, slots=True)
class _Options:
    """The query parameters of a stream."""

    encode: EncodeOptions
    container: Container
    dtype: Dtype | None


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the route to the router."""
    docs = Docs(EncodedLine | FailedLine, _EXAMPLES, "lines", query=StreamQuery)
    BERT_AS_SERVICE.add_routes(router, service, sorted(PATHS), encode_stream, body=Line, docs=docs)


async def encode_stream(context: RequestContext) -> Response:
    """Return a line {"id", "embedding"} for each line of the body, in order. Invalid lines get "error" instead."""
    if context.request.headers.get("content-encoding", "identity") != "identity":
        raise UnreadableBody("the body of a stream must not be compressed: send it without Content-Encoding")
    options = _options(dict(context.request.query_params))
    has_many = bool({"NONE", "SPLADE"} & set(options.encode.pooling_strategy or ()))
    size = _CHUNK_LINES_OF_TOKENS if has_many else _CHUNK_LINES
    service = context.service  # each chunk holds its own memory, not that of the request
    queue: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_MAX_CHUNKS)
    works: set[asyncio.Task[bytes]] = set()

    async def read() -> None:
        try:
            async for lines in _chunks(context, size):
                work = asyncio.create_task(_encode(service, lines, options))
                works.add(work)
                work.add_done_callback(works.discard)
                await queue.put(work)
        finally:
            await queue.put(None)

    async def write() -> AsyncGenerator[bytes]:
        reader = asyncio.create_task(read())
        try:
            while (work := await queue.get()) is not None:
                yield await work
            await reader
        finally:  # this also runs when the caller has disconnected
            for task in (reader, *works):
                task.cancel()
            while not queue.empty():  # makes room for the last item that the reader puts
                queue.get_nowait()

    return _StreamResponse(write())


class _StreamResponse(Response):
    """A response that is sent while the body of the request is still being received.

    Starlette's StreamingResponse also reads from the body, to notice when the caller disconnects. The handler
    would lose the lines that StreamingResponse reads.
    """

    media_type = "application/x-ndjson"

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Returning before the last message closes the connection. This tells the caller that lines are missing.
        async with aclosing(self._pieces) as pieces:
            try:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except ClientDisconnect:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _options(query: dict[str, str]) -> _Options:
    """Return the query parameters after all checks. Raises Unprocessable."""
    container = _choice("encoding_format", query.pop("encoding_format", "float"), _CONTAINERS)
    dtype = _choice("output_dtype", query.pop("output_dtype"), DTYPES) if "output_dtype" in query else None
    if refused := [name for name in _REPLY_OPTIONS if name in query]:
        raise Unprocessable(f"option {refused[0]!r} is not available in a stream: use /encode")
    try:
        options = options_from_json(
            {name: _json_value(name, value) for name, value in query.items()} | {"ragged": True}
        )
    except (TypeError, ValueError) as exc:
        raise Unprocessable(str(exc)) from exc
    return _Options(options, container, dtype)


def _choice(name: str, value: str, choices: tuple[_T, ...]) -> _T:
    for choice in choices:
        if choice == value:
            return choice
    raise Unprocessable(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {shortened(value)}")


def _json_value(name: str, value: str) -> object:
    """Return a query parameter as the JSON value of the option. Texts and names need no quotes."""
    if name in ("prompt", "prompt_name", "truncate", "long_text"):
        return value
    if name == "pooling_strategy":
        return value.split(",")
    try:
        parsed: object = orjson.loads(value)
    except ValueError:
        return value
    return parsed


async def _chunks(context: RequestContext, size: int) -> AsyncIterator[list[_Line]]:
    """Yield the lines of the body as they are received, at most `size` at a time."""
    buffer, number = LineBuffer(), 0
    async for data in context.request.stream():
        whole = buffer.feed(data)
        lines = [_parse(line, number + i) for i, line in enumerate(whole) if line.strip()]
        number += len(whole)
        for start in range(0, len(lines), size):
            yield lines[start : start + size]
        if len(buffer) > _MAX_LINE_BYTES:
            yield [_Line(number, None, InvalidRequest(f"a line must have at most {_MAX_LINE_BYTES} bytes"))]
            return
    if (rest := buffer.rest()).strip():
        yield [_parse(rest, number)]


class LineBuffer:
    """Splits bytes that arrive in pieces into lines. Each byte is searched for the end of a line only once."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes) -> list[bytes]:
        """Add a piece; return the lines that are complete now, without their ends."""
        if b"\n" not in data:
            self._bytes += data
            return []
        first, *lines, rest = data.split(b"\n")
        self._bytes += first
        lines.insert(0, bytes(self._bytes))
        self._bytes = bytearray(rest)
        return lines

    def rest(self) -> bytes:
        """Return what has arrived after the last line."""
        return bytes(self._bytes)


def _parse(line: bytes, number: int) -> _Line:
    """Return a line of the body with its text, or with the reason why it has none."""
    line_id: object = number
    try:
        value = _json_of(line)
        if isinstance(value, dict):
            line_id = echo(line, value["id"]) if "id" in value else number
            value = value.get("text")
        notes = TextNotes()
        text = cast("Text", readable_texts([value], notes, on_error="error")[0])
    except InvalidRequest as exc:
        return _Line(line_id, None, exc)
    return _Line(line_id, text, num_dropped=notes.num_dropped)


def _json_of(line: bytes) -> object:
    try:
        value: object = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        try:
            value = parse_json(line)  # also reads lone surrogates
        except InvalidRequest:
            raise InvalidRequest(f"the line is not JSON: {exc}") from exc
    return value


async def _encode(service: Service, lines: list[_Line], options: _Options) -> bytes:
    """Return the lines of the response to the lines of one chunk."""
    service.notes.num_dropped += sum(line.num_dropped for line in lines)
    call = replace(service.call, on_error="null")  # an error of a text belongs to its line
    with RequestMemory(service.memory, service.call.flow or "") as held:
        return await _encode_within(service.for_call(call, held), lines, options)


async def _encode_within(service: Service, lines: list[_Line], options: _Options) -> bytes:
    texts = [line.text for line in lines if line.error is None and line.text is not None]
    computed = iter(await _vectors(service, texts, options.encode))
    results = [line.error if line.error is not None else next(computed) for line in lines]
    objects = [_line_object(line, result, options) for line, result in zip(lines, results, strict=True)]
    as_line = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(each, option=as_line) for each in objects)


def _line_object(line: _Line, result: _Result, options: _Options) -> dict[str, object]:
    """Return a line of the response: vectors and what was left out of the text, or an error."""
    try:
        if not isinstance(result, ServingError):
            rows, is_truncated = result
            embedding = encoded(convert(rows, options.dtype), options.container)
            cut: dict[str, object] = {"truncated": True} if is_truncated else {}
            dropped = {"dropped_characters": line.num_dropped} if line.num_dropped else {}
            return {"id": line.line_id, "embedding": embedding, **cut, **dropped}
        info = result.to_info()
    except ServingError as exc:
        info = exc.to_info()
    return {"id": line.line_id, "error": {**info, "message": info["message"].replace("texts[0]", "text")}}


async def _vectors(service: Service, texts: list[Text], options: EncodeOptions) -> list[_Result]:
    """Return the result of each text. If a text makes a worker fail, each text is sent in its own request."""
    if not texts:
        return []
    try:
        reply = await _reply(service, texts, options)
    except (InvalidRequest, WorkerFailed) as exc:
        if len(texts) == 1:
            return [exc]
        return [result for text in texts for result in await _vectors(service, [text], options)]
    except (ServingError, TimeoutError) as exc:
        error = exc if isinstance(exc, ServingError) else ServingError(str(exc))
        return [error] * len(texts)
    truncated = set(reply.truncated)
    rows = reply.rows if reply.counts is None else split_rows(reply.rows, reply.counts)
    found: list[_Result] = [(of_text, i in truncated) for i, of_text in enumerate(rows)]
    for each in reply.errors:
        found[each["index"]] = error_from_info({"code": each["code"], "message": f"text: {each['message']}"})
    return found


async def _reply(service: Service, texts: list[Text], options: EncodeOptions) -> EncodeReply:
    """Return the reply. While the server is overloaded, a stream waits and tries again, until its deadline."""
    while True:
        try:
            reply = await service.encode_reply(texts, options)
            break
        except Overloaded as exc:
            await service.call.sleep((exc.retry_after_ms or 1000) / 1000)
    return reply
