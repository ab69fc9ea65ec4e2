"""What all routes have in common: the check of the API key, and errors in the format that the clients expect.

A dialect is a family of routes with the same format of errors. Its handlers get a `RequestContext` and return a
Response. To report an error, they raise a ServingError.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import orjson
from bert_serving.protocol import Overloaded, ServingError, Unauthorized, Unavailable
from bert_serving.protocol.trace_names import quoted
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from .context import RequestContext
from .errors import DefaultError, default_error
from .http_protocol import ENDED_WITH
from .openapi import Docs, Operation
from .routes import DirectRoute
from .service import Service

#: Key under which the error code of a failed request is stored in the request's ASGI scope, for the metrics.
ERROR_CODE = "bert_serving.error_code"

_RETRY_AFTER_MS = 1000  # for an Overloaded that names no time

Handler: TypeAlias = Callable[[RequestContext], Awaitable[Response]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A family of routes with the same format of errors.

    tag: the heading of the routes in /docs. describe_error: returns the HTTP status and the JSON body of an error.
    error: the type of this body. about: says in /docs which clients use the routes, and how.
    """

    tag: str
    describe_error: Callable[[ServingError], tuple[int, object]]
    error: object
    about: str

    def add_routes(
        self,
        router: APIRouter,
        service: Service,
        paths: Sequence[str],
        handler: Handler,
        *,
        body: type[BaseModel] | None = None,
        is_public: bool = False,
        docs: Docs = Docs(),  # noqa: B008
    ) -> None:
        """Add a handler under each path: for POST if `body` is given, else for GET and HEAD.

        /docs lists only the first path, with the handler's docstring and `docs`. is_public: no API key is
        required.
        """

        async def run(request: Request) -> Response:
            return await self._run(handler, RequestContext(request, service), is_public=is_public)

        operation = Operation(self, paths, handler, body, is_public, docs)
        for path in paths:
            described = operation if path == paths[0] else None
            router.routes.append(
                DirectRoute(
                    path,
                    run,
                    method=operation.method.upper(),
                    name=handler.__name__,
                    dialect=self.tag,
                    operation=described,
                )
            )

    async def _run(self, handler: Handler, context: RequestContext, *, is_public: bool) -> Response:
        error: ServingError | TimeoutError
        try:
            if not is_public:
                context.service.keys.check(context.request)
            context.begin()
            response = await context.service.call.limit(handler(context))
            response.headers.update(context.service.notes.headers())
            return response
        except ClientDisconnect:
            return Response(status_code=400)  # not received: the client disconnected while it sent the body
        except (ServingError, TimeoutError) as exc:
            error = exc
        except asyncio.CancelledError:
            if ENDED_WITH in context.request.scope:  # nobody waits for a response
                raise
            error = Unavailable("the server is shutting down")
        except Exception:  # caught here, because the application's error handler does not know the dialect
            log.exception("cannot handle request trace=%s", quoted(context.service.call.trace))
            error = ServingError("internal error")
        code = context.request.scope[ERROR_CODE] = getattr(error, "code", Unavailable.code)
        log.debug("refused request trace=%s error=%s", quoted(context.service.call.trace), code)
        return self.error_response(error)

    def error_response(self, error: ServingError | TimeoutError) -> Response:
        """Return the response that describes the error. Headers contain the retry time, if there is one."""
        if not isinstance(error, ServingError):
            error = Unavailable(str(error))  # a TimeoutError means that the broker does not answer
        status, content = self.describe_error(error)
        return Response(_dump(content), status, _error_headers(error), "application/json")


#: The dialect of bert-as-service's routes, of new routes such as /encode/stream, and of paths that do not exist.
BERT_AS_SERVICE = Dialect(
    "bert-as-service",
    default_error,
    DefaultError,
    "The routes of bert-as-service's HTTP port, with more options, and a stream. The Python client, `BertClient`, "
    "uses ZeroMQ instead, which is faster.",
)


def _dump(content: object) -> bytes:
    try:
        return orjson.dumps(content)
    except TypeError:  # the message repeats a lone surrogate from the request
        return json.dumps(content).encode()


def _error_headers(error: ServingError) -> dict[str, str]:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
    retry_after_ms = error.retry_after_ms
    if retry_after_ms is None and isinstance(error, Overloaded):
        retry_after_ms = _RETRY_AFTER_MS
    if retry_after_ms is not None:
        headers |= {
            "Retry-After": str(-(-retry_after_ms // 1000)),  # in whole seconds, rounded up
            "retry-after-ms": str(retry_after_ms),
        }
    return headers
