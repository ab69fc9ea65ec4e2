"""The errors that a server sends to its clients.

    ServingError
     ├── InvalidRequest          400  the request is wrong; sending it again does not help
     │    └── PayloadTooLarge    413  the request has more texts or bytes than the server accepts
     ├── Unauthorized            401  the client may not send this request
     ├── Overloaded              429  the queue is full; `retry_after_ms` says when to try again
     ├── WorkerFailed            500  the model failed on this request; other requests are not affected
     ├── Unavailable             503  no server or worker can be reached, or the server is stopping
     └── DeadlineExceeded        504  the deadline passed before the vectors were ready

Each class has a code for the wire and an HTTP status. A class that means the same as a built-in exception is a
subclass of that exception too, so `except TimeoutError` also catches DeadlineExceeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypedDict


class _CodeAndMessage(TypedDict):
    code: str
    message: str


class ErrorInfo(_CodeAndMessage, total=False):
    """The JSON object that describes an error in a reply."""

    retry_after_ms: int


class ServingError(Exception):
    """Base class of the errors that a server sends.

    message: what is wrong. retry_after_ms: how long to wait before a retry; None: unknown.
    code: the name of the error on the wire. http_status: the status of an HTTP response with this error.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms

    def to_info(self) -> ErrorInfo:
        """Return the JSON object that describes this error in a reply."""
        info: ErrorInfo = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            info["retry_after_ms"] = self.retry_after_ms
        return info


class InvalidRequest(ServingError, ValueError):
    """The request is wrong. Sending it again does not help."""

    code = "invalid_request"
    http_status = 400


class Unauthorized(ServingError, PermissionError):
    """The client may not send this request."""

    code = "unauthorized"
    http_status = 401


class PayloadTooLarge(InvalidRequest):
    """The request has more texts or bytes than the server accepts."""

    code = "payload_too_large"
    http_status = 413


class Overloaded(ServingError):
    """The queue, the memory or the client's share of them is full. Try again after `retry_after_ms`."""

    code = "overloaded"
    http_status = 429


class WorkerFailed(ServingError, RuntimeError):
    """The model failed on this request. Other requests are not affected."""

    code = "worker_failed"
    http_status = 500


class Unavailable(ServingError, ConnectionError):
    """No server or no worker can be reached, or the server is stopping, or the client is closed."""

    code = "unavailable"
    http_status = 503


class DeadlineExceeded(ServingError, TimeoutError):
    """The deadline of the request passed before its vectors were ready."""

    code = "deadline_exceeded"
    http_status = 504


_BY_CODE: dict[str, type[ServingError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        Unauthorized,
        PayloadTooLarge,
        Overloaded,
        WorkerFailed,
        Unavailable,
        DeadlineExceeded,
    )
}

#: The codes of all errors, as sent in replies and used as labels of metrics.
ERROR_CODES = (ServingError.code, *_BY_CODE)


def error_from_info(info: Mapping[str, object]) -> ServingError:
    """Return the error that `ServingError.to_info` wrote. An unknown code becomes a ServingError."""
    cls = _BY_CODE.get(str(info.get("code")), ServingError)
    retry_after_ms = info.get("retry_after_ms")
    return cls(
        str(info.get("message", "no message")),
        retry_after_ms=retry_after_ms if isinstance(retry_after_ms, int) else None,
    )
