"""Errors keep their class, message and HTTP status on the way from server to client."""

from __future__ import annotations

import pytest
from bert_serving.protocol import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
    WorkerFailed,
    error_from_info,
)
from hypothesis import given
from hypothesis import strategies as st

ERRORS = [
    (InvalidRequest, "invalid_request", 400),
    (Unauthorized, "unauthorized", 401),
    (PayloadTooLarge, "payload_too_large", 413),
    (Overloaded, "overloaded", 429),
    (WorkerFailed, "worker_failed", 500),
    (Unavailable, "unavailable", 503),
    (DeadlineExceeded, "deadline_exceeded", 504),
]
classes = pytest.mark.parametrize("cls", [cls for cls, _, _ in ERRORS])


@pytest.mark.parametrize(("cls", "code", "http_status"), ERRORS)
def test_class_has_its_code_and_http_status(cls: type[ServingError], code: str, http_status: int) -> None:
    assert (cls.code, cls.http_status) == (code, http_status)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (InvalidRequest, ValueError),
        (PayloadTooLarge, InvalidRequest),
        (Unauthorized, PermissionError),
        (WorkerFailed, RuntimeError),
        (Unavailable, ConnectionError),
        (DeadlineExceeded, TimeoutError),
    ],
)
def test_error_is_also_the_builtin_exception_of_the_same_meaning(
    cls: type[ServingError], builtin: type[Exception]
) -> None:
    assert issubclass(cls, builtin)


@classes
def test_str_of_an_error_is_its_message(cls: type[ServingError]) -> None:
    assert str(cls("no, not that")) == "no, not that"


@classes
def test_error_survives_a_round_trip_through_its_info(cls: type[ServingError]) -> None:
    error = error_from_info(cls("why", retry_after_ms=250).to_info())
    assert (type(error), error.message, error.retry_after_ms) == (cls, "why", 250)


def test_info_without_retry_time_has_only_code_and_message() -> None:
    assert InvalidRequest("why").to_info() == {"code": "invalid_request", "message": "why"}


def test_info_of_overloaded_has_the_retry_time() -> None:
    expected = {"code": "overloaded", "message": "full", "retry_after_ms": 120}
    assert Overloaded("full", retry_after_ms=120).to_info() == expected


def test_unknown_code_becomes_the_base_error() -> None:
    error = error_from_info({"code": "of_a_later_version", "message": "why"})
    assert (type(error), error.message) == (ServingError, "why")


def test_empty_info_becomes_the_base_error() -> None:
    assert error_from_info({}).message == "no message"


@given(st.sampled_from([cls for cls, _, _ in ERRORS]), st.text(), st.none() | st.integers(0, 10**6))
def test_any_message_survives_a_round_trip(
    cls: type[ServingError], message: str, retry_after_ms: int | None
) -> None:
    error = error_from_info(cls(message, retry_after_ms=retry_after_ms).to_info())
    assert (type(error), error.message, error.retry_after_ms) == (cls, message, retry_after_ms)
