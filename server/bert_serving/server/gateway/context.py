"""One HTTP request: reads, decompresses and validates its body, and compresses its response."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

from bert_serving.protocol import InvalidRequest, PayloadTooLarge, shortened
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from .calls import call_of
from .errors import Unprocessable, UnreadableBody
from .fields import TextsBody
from .json_body import read_json
from .json_pieces import dump, is_small, json_pieces
from .limits import BodyLimits
from .memory import RequestMemory, parsed_bytes
from .responses import PiecesResponse
from .service import Service
from .texts import NOTES, TextNotes
from .usage import ON_COMPUTED

#: Key in the ASGI scope of a request: its RequestMemory.
HELD = "bert_serving.held"

_MIN_GZIP_BYTES = 16 << 10  # compressing a smaller response costs more time than it saves
_GZIP_IN, _GZIP_OUT = 64 << 10, 256 << 10  # bytes of one step of decompression
_REFUSES_GZIP = re.compile(r"gzip\s*;\s*q\s*=\s*0(\.0*)?\s*(,|$)")

_Body = TypeVar("_Body", bound=BaseModel)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class RequestContext:
    """One HTTP request, and the service that computes the response.

    `begin` must be called before the body is read. CountRequests gives back the memory of the request.
    """

    def __init__(self, request: Request, service: Service) -> None:
        self.request = request
        self.service = service
        self._limits = service.limits
        self._parsed: tuple[object] | None = None  # None: not parsed yet; a tuple, because the JSON may be null
        self._held = RequestMemory(service.memory, "")

    def begin(self) -> None:
        """Read the headers that the broker must know. Raises UnreadableBody."""
        call = call_of(self.request)
        notes = self.request.scope[NOTES] = TextNotes()
        self._held = self.request.scope[HELD] = RequestMemory(self.service.memory, call.flow or "")
        self.service = self.service.for_call(
            call, self._held, notes=notes, on_computed=self.request.scope.get(ON_COMPUTED)
        )

    # -- the body --------------------------------------------------------------------------------------

    async def raw(self) -> bytes:
        """Return the body, decompressed. Raises UnreadableBody, PayloadTooLarge or Overloaded.

        While the body arrives, the memory is held that the body will take, also as parsed JSON. So a body that is
        too large is refused before all of it is here.
        """
        coding = self.request.headers.get("content-encoding", "identity").lower()
        if coding not in ("gzip", "identity"):
            raise UnreadableBody(f"content-encoding must be gzip, got {coding!r:.80}")
        announced = self.request.headers.get("content-length", "0")
        self._check_size(int(announced) if announced.isdigit() else 0)
        pieces, num_bytes = [], 0
        async for piece in self.request.stream():
            num_bytes += len(piece)
            self._check_size(num_bytes)
            self._held.grow(len(piece) if coding == "gzip" else len(piece) + parsed_bytes(piece))
            pieces.append(piece)
        body = b"".join(pieces)
        return await self._decompressed(body) if coding == "gzip" else body

    async def body(self, model: type[_Body]) -> _Body:
        """Return the JSON body as an instance of the model. Further calls do not parse the JSON again.

        Raises UnreadableBody, Unprocessable with the name of the wrong field, PayloadTooLarge or Overloaded.
        """
        if self._parsed is None:
            raw = await self.raw()
            self._parsed = (await self.off_loop(_parse_json, raw, self._limits),)
        try:
            body = await self.off_loop(model.model_validate, self._parsed[0])
        except ValidationError as exc:
            raise _validation_error(exc) from exc
        if isinstance(body, TextsBody) and body.on_error is not None:
            self.service = self.service.with_on_error(body.on_error)
        return body

    def for_part(self, part: object) -> PartContext:
        """Return a context for a part of the body that is a body of its own."""
        return PartContext(self, part)

    def hold(self, num_bytes: int) -> None:
        """Hold memory for what is made from the body. Raises Overloaded or PayloadTooLarge."""
        self._held.grow(num_bytes)

    async def off_loop(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function: in a thread if the body or the reply is large, so that other requests go on."""
        return await self._held.off_loop(function, *args, **kwargs)

    async def _decompressed(self, body: bytes) -> bytes:
        pieces, num_bytes, inflated = [], 0, _inflated(body)
        while (piece := await self.off_loop(next, inflated, None)) is not None:
            num_bytes += len(piece)
            self._check_size(num_bytes, " when decompressed")
            self._held.grow(len(piece) + parsed_bytes(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def _check_size(self, num_bytes: int, when: str = "") -> None:
        if num_bytes > self._limits.max_bytes:
            raise PayloadTooLarge(f"the body must have at most {self._limits.max_bytes} bytes{when}")

    # -- the response ----------------------------------------------------------------------------------

    async def json(
        self, content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return a JSON response. A large response is compressed if the client accepts gzip.

        A large response is written in pieces while it is sent, and at most one piece ahead of what is sent.
        """
        if not is_small(content):
            return PiecesResponse(json_pieces(content), status, headers, gzip=self._accepts_gzip)
        data = dump(content)
        if len(data) < _MIN_GZIP_BYTES or not self._accepts_gzip:
            return Response(data, status, headers, "application/json")
        return PiecesResponse(iter([data]), status, headers, gzip=True)

    @property
    def _accepts_gzip(self) -> bool:
        accepted = self.request.headers.get("accept-encoding", "").lower()
        return "gzip" in accepted and not _REFUSES_GZIP.search(accepted)


NO_CONTENT = object()


class PartContext(RequestContext):
    """A part of a request that is a body of its own.

    content: the JSON content of its response; NO_CONTENT if the response is not JSON.
    """

    def __init__(self, whole: RequestContext, part: object) -> None:
        super().__init__(whole.request, whole.service.for_call(whole.service.call, whole._held, notes=TextNotes()))
        self._parsed = (part,)
        self._held = whole._held
        self.content: object = NO_CONTENT

    async def json(
        self, content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Keep the content. The whole request has one response."""
        self.content = content
        return Response(status_code=status, headers=headers)


def _inflated(body: bytes) -> Iterator[bytes]:
    """Yield the decompressed body in small pieces. Raises UnreadableBody."""
    decompressor = zlib.decompressobj(wbits=31)
    view = memoryview(body)
    try:
        for start in range(0, len(body), _GZIP_IN):
            rest: bytes | memoryview = view[start : start + _GZIP_IN]
            while rest and not decompressor.eof:
                yield decompressor.decompress(rest, _GZIP_OUT)
                rest = decompressor.unconsumed_tail
            if decompressor.eof and (rest or start + _GZIP_IN < len(body) or decompressor.unused_data):
                raise UnreadableBody("the body is not valid gzip: there is data after its end")
        while not decompressor.eof:
            piece = decompressor.decompress(b"", _GZIP_OUT)
            if not piece:
                raise UnreadableBody("the body is not valid gzip: its end is missing")
            yield piece
    except zlib.error as exc:
        raise UnreadableBody(f"the body is not valid gzip: {exc}") from exc


def _parse_json(raw: bytes, limits: BodyLimits) -> object:
    try:
        value = read_json(raw, max_nesting=limits.max_nesting)
    except ValueError as exc:
        raise UnreadableBody(f"the body is not JSON: {exc}") from exc
    _check_lists(value, limits.max_items)
    return value


def _check_lists(body: object, max_items: int, name: str = "") -> None:
    """Raise PayloadTooLarge if a field has too many items. This comes before the check of each item."""
    if isinstance(body, dict):
        for key, value in body.items():
            _check_lists(value, max_items, f"{name}.{key:.40}" if name else key[:40])
    elif isinstance(body, list) and len(body) > max_items:
        raise PayloadTooLarge(f"{name or 'the body'} may have at most {max_items} texts, got {len(body)}")


def _validation_error(exc: ValidationError) -> InvalidRequest:
    """Return the first problem of a body, described in one line."""
    # Pydantic describes problems in terms of Python ("dictionary") unless it is told that the input was JSON.
    as_json = ValidationError.from_exception_data(exc.title, exc.errors(include_url=False)[:1], "json")  # type: ignore[arg-type]
    problem = as_json.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ")
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "missing":
        return Unprocessable(f"the body has no {name!r}")
    if not name and problem["type"] == "model_type":
        return Unprocessable("the body must be a JSON object")
    if not name:
        return Unprocessable(message)
    got = "null" if problem["input"] is None else shortened(problem["input"])
    return Unprocessable(f"{name}: {message[0].lower()}{message[1:]}, got {got}")
