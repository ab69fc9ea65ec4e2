"""Error types for faulty HTTP bodies, and bert-as-service's error format, which is the default."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from bert_serving.protocol import InvalidRequest, ServingError
from fastapi import Response
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

_CODES = {404: "unknown_path", 405: "wrong_method"}


class UnreadableBody(InvalidRequest):
    """The body is not JSON, or not valid gzip. The status is 400 in every dialect."""


class Unprocessable(InvalidRequest):
    """The body is JSON, but a field is missing or has a wrong value. The dialect decides: status 422 or 400."""

    http_status = 422


class NoTexts(InvalidRequest):
    """The list of texts is empty. Some dialects have a status of their own for this."""


class OtherHttpError(ServingError):
    """An error outside of the handlers, such as a path that does not exist. Each instance has its own status."""

    def __init__(self, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.http_status = status  # type: ignore[misc]  # a class variable of the other errors
        self.code = _CODES.get(status, "invalid_request")  # type: ignore[misc]


class WrongModel(InvalidRequest):
    """The model that is served cannot do what the route is for."""


class DefaultError(TypedDict):
    """bert-as-service's error body."""

    description: str
    type: str
    status: int


def default_error(error: ServingError) -> tuple[int, object]:
    """Return the status and bert-as-service's error body, {"description", "type", "status"}."""
    if isinstance(error, UnreadableBody | Unprocessable):  # both are 400 in this format
        error = InvalidRequest(error.message)
    return error.http_status, _body(error.message, type(error).__name__, error.http_status)


def default_response(
    description: str, kind: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with bert-as-service's error body."""
    return Response(orjson.dumps(_body(description, kind, status)), status, headers, "application/json")


def _body(description: str, kind: str, status: int) -> dict[str, object]:
    return {"description": description, "type": kind, "status": status}
