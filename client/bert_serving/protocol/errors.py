"""Errors that cross the wire.

    ServingError
     ├── InvalidRequest     400  the request cannot be understood; repeating it will not help
     ├── Unauthorized       401  the sender may not ask for this
     ├── PayloadTooLarge    413  more texts or bytes than one request may hold
     ├── Overloaded         429  the queue is full; `retry_after_ms` says when to come back
     ├── WorkerFailed       500  the model failed on this request, and on this request alone
     ├── Unavailable        503  no server, no worker, or the server is going down
     └── DeadlineExceeded   504  the deadline passed before the vectors were ready

A class knows its code on the wire and its HTTP status. Where a built-in exception means the same, the
class is also that exception, so `except TimeoutError` and `except ConnectionError` do what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ServingError(Exception):
    """Base of every error that the service answers with."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms

    def to_info(self) -> dict[str, Any]:
        """Return the error as the JSON object that travels in a reply."""
        info: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            info["retry_after_ms"] = self.retry_after_ms
        return info


class InvalidRequest(ServingError, ValueError):
    code = "invalid_request"
    http_status = 400


class Unauthorized(ServingError, PermissionError):
    code = "unauthorized"
    http_status = 401


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"
    http_status = 413


class Overloaded(ServingError):
    code = "overloaded"
    http_status = 429


class WorkerFailed(ServingError, RuntimeError):
    code = "worker_failed"
    http_status = 500


class Unavailable(ServingError, ConnectionError):
    code = "unavailable"
    http_status = 503


class DeadlineExceeded(ServingError, TimeoutError):
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

#: The codes of all errors, as they travel on the wire and label the metrics.
ERROR_CODES = (ServingError.code, *_BY_CODE)


def error_from_info(info: Mapping[str, Any]) -> ServingError:
    """Return the exception that `ServingError.to_info` described; unknown codes become ServingError."""
    cls = _BY_CODE.get(str(info.get("code")), ServingError)
    return cls(str(info.get("message", "no message")), retry_after_ms=info.get("retry_after_ms"))
