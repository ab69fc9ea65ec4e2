"""The shell around every route: who may call, what came, and how an error is said.

A dialect is a family of routes that say errors alike. Its handlers read a `Call` and return a Response; what
goes wrong they raise as a ServingError.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import orjson
from bert_serving.protocol import (
    EncodeReply,
    InvalidRequest,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
)
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from .service import Service

_MIN_GZIP_BYTES = 16 << 10  # below, it costs more time than it saves
_GZIP_LEVEL = 1
_REFUSES_GZIP = re.compile(r"gzip\s*;\s*q\s*=\s*0(\.0*)?\s*(,|$)")

#: Where the code of an error stands in the scope of its request.
ERROR_CODE = "bert_serving.error_code"

log = logging.getLogger(__name__)

_Body = TypeVar("_Body", bound=BaseModel)


class NotJson(InvalidRequest):
    """The body cannot be read at all: 400 in every dialect."""


class Unprocessable(InvalidRequest):
    """The body can be read, but not be used."""

    http_status = 422


class Call:
    """One HTTP request. service: what answers it."""

    def __init__(self, request: Request, service: Service) -> None:
        self.request = request
        self.service = service

    async def raw(self) -> bytes:
        """Return the body, unpacked. Raises NotJson or PayloadTooLarge."""
        body = await self.request.body()
        coding = self.request.headers.get("content-encoding", "identity").lower()
        if coding not in ("gzip", "identity"):
            raise NotJson(f"content-encoding must be gzip, got {coding!r:.80}")
        return await asyncio.to_thread(_unzipped, body, self.service.max_body_bytes) if coding == "gzip" else body

    @property
    def _reads_gzip(self) -> bool:
        accepted = self.request.headers.get("accept-encoding", "").lower()
        return "gzip" in accepted and not _REFUSES_GZIP.search(accepted)

    async def body(self, model: type[_Body]) -> _Body:
        """Return the JSON body as the model has it. Raises NotJson or Unprocessable, which name the field."""
        try:
            return model.model_validate_json(await self.raw())
        except ValidationError as exc:
            raise _complaint(exc) from exc

    async def json(self, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """Return a JSON response, packed where it is large and the caller reads gzip."""
        content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = headers or {}
        if len(content) >= _MIN_GZIP_BYTES and self._reads_gzip:
            # In a thread: it takes long, and others are served meanwhile.
            content = await asyncio.to_thread(gzip.compress, content, _GZIP_LEVEL)
            headers = {**headers, "content-encoding": "gzip", "vary": "Accept-Encoding"}
        return Response(content, status, headers, "application/json")


Handler: TypeAlias = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Routes that say errors alike. error: the status and the JSON body of one."""

    tag: str
    error: Callable[[ServingError], tuple[int, Any]]

    def add(
        self,
        router: APIRouter,
        service: Service,
        paths: Sequence[str],
        handler: Handler,
        *,
        body: type[BaseModel] | None = None,
        is_public: bool = False,
    ) -> None:
        """Add a handler: POST where it takes a body, else GET. is_public: it needs no API key."""

        async def run(request: Request) -> Response:
            call = Call(request, service)
            error: ServingError | TimeoutError
            try:
                if not is_public:
                    check_key(request, service.api_keys)
                return await handler(call)
            except ClientDisconnect:
                return Response(status_code=400)  # to nobody: the client left while it sent
            except (ServingError, TimeoutError) as exc:
                error = exc
            except asyncio.CancelledError:
                error = Unavailable("the server is shutting down")
            except Exception:  # the outermost place that knows in whose words to say it
                log.exception("cannot answer %s", request.url.path)
                error = ServingError("internal error")
            response = self.respond(error)
            request.scope[ERROR_CODE] = getattr(error, "code", Unavailable.code)
            return response

        run.__doc__ = handler.__doc__
        for path in paths:
            router.add_api_route(
                path,
                run,
                methods=["GET" if body is None else "POST"],
                name=handler.__name__,
                operation_id=f"{handler.__name__}{path}".replace("/", "_"),
                tags=[self.tag],
                openapi_extra=None if body is None else _request_body(body),
                include_in_schema=path == paths[0],
            )
            if body is None:  # probes ask like that
                router.add_api_route(path, run, methods=["HEAD"], include_in_schema=False)

    def respond(self, error: ServingError | TimeoutError) -> Response:
        """Return the response that says the error."""
        if not isinstance(error, ServingError):
            error = Unavailable(str(error))  # the broker does not answer at all
        status, content = self.error(error)
        return Response(orjson.dumps(content), status, _retry_headers(error), "application/json")


def check_key(request: Request, keys: Sequence[str]) -> None:
    """Raise Unauthorized unless the request has one of the keys, if there are any."""
    if not keys:
        return
    authorization = request.headers.get("authorization", "")
    scheme, _, rest = authorization.partition(" ")
    bearer = rest.strip() if scheme.lower() == "bearer" else authorization
    # Each is compared, whole: the time that it takes tells nothing.
    found = [
        hmac.compare_digest(given.encode(), key.encode())
        for given in (bearer, request.headers.get("x-api-key", ""))
        for key in keys
    ]
    if not any(found):
        raise Unauthorized("this server asks for an API key: send Authorization: Bearer <key>")


def usage_headers(reply: EncodeReply, num_chars: int) -> dict[str, str]:
    """Return TEI's timing headers, in milliseconds, and which texts were cut."""
    usage = reply.usage
    assert usage is not None, "the service asks for it"
    headers = {
        "x-compute-characters": str(num_chars),
        "x-compute-tokens": str(sum(usage.num_tokens)),
        "x-compute-time": str(round(usage.tokenize_ms + usage.compute_ms)),
        "x-total-time": str(round(usage.total_ms)),
        "x-tokenization-time": str(round(usage.tokenize_ms)),
        "x-queue-time": str(round(usage.queue_ms)),
        "x-inference-time": str(round(usage.compute_ms)),
    }
    if reply.truncated:
        headers["x-truncated-count"] = str(len(reply.truncated))
        headers["x-truncated"] = ",".join(map(str, reply.truncated[:_MAX_LISTED]))
    return headers


_MAX_LISTED = 256  # indices in a header, which must stay a few kilobytes


def _retry_headers(error: ServingError) -> dict[str, str]:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
    if error.retry_after_ms is not None:
        headers |= {
            "Retry-After": str(-(-error.retry_after_ms // 1000)),
            "retry-after-ms": str(error.retry_after_ms),
        }
    return headers


def _unzipped(body: bytes, max_bytes: int) -> bytes:
    unpack = zlib.decompressobj(wbits=31)
    try:
        content = unpack.decompress(body, max_bytes)
    except zlib.error as exc:
        raise NotJson(f"the body is no gzip: {exc}") from exc
    if unpack.unconsumed_tail:
        raise PayloadTooLarge(f"the body must have at most {max_bytes} bytes, unpacked")
    if not unpack.eof:
        raise NotJson("the body is no gzip: it ends too early")
    if unpack.unused_data:
        raise NotJson("the body is no gzip: something comes after its end")
    return content


def _complaint(exc: ValidationError) -> InvalidRequest:
    """Return the first thing that is wrong with a body, in one line."""
    problem = exc.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return NotJson(f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}")
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return Unprocessable(f"the body has no {name!r}")
    if not name and problem["type"] == "model_type":
        return Unprocessable("the body must be a JSON object")
    if not name:
        return Unprocessable(message)
    got = "null" if problem["input"] is None else f"{problem['input']!r:.80}"
    return Unprocessable(f"{name}: {message[0].lower()}{message[1:]}, got {got}")


def _request_body(body: type[BaseModel]) -> dict[str, Any]:
    schema = body.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with what it refers to in place: the document around it keeps no definitions."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
