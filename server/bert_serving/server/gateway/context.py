"""One HTTP request: decompresses and validates its body, and compresses its response."""

from __future__ import annotations

import asyncio
import gzip
import re
import zlib
from collections.abc import Mapping
from typing import TypeVar

import orjson
from bert_serving.protocol import InvalidRequest, PayloadTooLarge
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from .errors import Unprocessable, UnreadableBody
from .service import Service

_MIN_GZIP_BYTES = 16 << 10  # compressing a smaller response costs more time than it saves
_GZIP_LEVEL = 1
_REFUSES_GZIP = re.compile(r"gzip\s*;\s*q\s*=\s*0(\.0*)?\s*(,|$)")

_Body = TypeVar("_Body", bound=BaseModel)


class RequestContext:
    """One HTTP request, and the service that computes the response."""

    def __init__(self, request: Request, service: Service) -> None:
        self.request = request
        self.service = service
        self._parsed: tuple[object] | None = None  # None: not parsed yet; a tuple, because the JSON may be null

    async def raw(self) -> bytes:
        """Return the body, decompressed. Raises UnreadableBody or PayloadTooLarge."""
        body = await self.request.body()
        coding = self.request.headers.get("content-encoding", "identity").lower()
        if coding not in ("gzip", "identity"):
            raise UnreadableBody(f"content-encoding must be gzip, got {coding!r:.80}")
        return (
            await asyncio.to_thread(_decompress, body, self.service.max_body_bytes) if coding == "gzip" else body
        )

    async def body(self, model: type[_Body]) -> _Body:
        """Return the JSON body as an instance of the model. Further calls do not parse the JSON again.

        Raises UnreadableBody, or Unprocessable with the name of the wrong field.
        """
        if self._parsed is None:
            self._parsed = (_parse_json(await self.raw()),)
        try:
            return model.model_validate(self._parsed[0])
        except ValidationError as exc:
            raise _validation_error(exc) from exc

    async def json(
        self, content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return a JSON response. A large response is compressed if the client accepts gzip."""
        data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        if len(data) < _MIN_GZIP_BYTES or not self._accepts_gzip:
            return Response(data, status, headers, "application/json")
        # In a thread: compression takes long and must not delay other requests.
        data = await asyncio.to_thread(gzip.compress, data, _GZIP_LEVEL)
        headers = {**(headers or {}), "content-encoding": "gzip", "vary": "Accept-Encoding"}
        return Response(data, status, headers, "application/json")

    @property
    def _accepts_gzip(self) -> bool:
        accepted = self.request.headers.get("accept-encoding", "").lower()
        return "gzip" in accepted and not _REFUSES_GZIP.search(accepted)


def _decompress(body: bytes, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(body, max_bytes)
    except zlib.error as exc:
        raise UnreadableBody(f"the body is not valid gzip: {exc}") from exc
    if decompressor.unconsumed_tail:
        raise PayloadTooLarge(f"the body must have at most {max_bytes} bytes when decompressed")
    if not decompressor.eof:
        raise UnreadableBody("the body is not valid gzip: its end is missing")
    if decompressor.unused_data:
        raise UnreadableBody("the body is not valid gzip: there is data after its end")
    return content


def _parse_json(raw: bytes) -> object:
    try:
        value: object = from_json(raw)
    except ValueError as exc:
        raise UnreadableBody(f"the body is not JSON: {exc}") from exc
    return value


def _validation_error(exc: ValidationError) -> InvalidRequest:
    """Return the first problem of a body, described in one line."""
    # Pydantic describes problems in terms of Python ("dictionary") unless it is told that the input was JSON.
    as_json = ValidationError.from_exception_data(exc.title, exc.errors(include_url=False)[:1], "json")  # type: ignore[arg-type]
    problem = as_json.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ")
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return Unprocessable(f"the body has no {name!r}")
    if not name and problem["type"] == "model_type":
        return Unprocessable("the body must be a JSON object")
    if not name:
        return Unprocessable(message)
    got = "null" if problem["input"] is None else f"{problem['input']!r:.80}"
    return Unprocessable(f"{name}: {message[0].lower()}{message[1:]}, got {got}")
