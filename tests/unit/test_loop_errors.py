"""Callers cannot fill a gateway's log with errors of the event loop."""

from __future__ import annotations

import asyncio
import errno

import pytest
from bert_serving.server.gateway.loop_errors import LoopErrors


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr("bert_serving.server.gateway.loop_errors.time.monotonic", lambda: time[0])
    return time


def test_an_error_of_the_system_is_logged_once_in_a_while_and_others_always(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    loop, log = asyncio.new_event_loop(), LoopErrors()
    loop.close()

    def report(exc: Exception) -> int:
        """Return how many lines are logged for an error that is reported three times."""
        caplog.clear()
        for _ in range(3):
            log(loop, {"message": "cannot accept", "exception": exc})
        return len(caplog.records)

    assert report(OSError(errno.EMFILE, "Too many open files")) == 1
    assert report(OSError(errno.ENFILE, "Too many open files in system")) == 1
    assert report(ValueError("a bug")) == 3
    assert report(OSError(errno.EMFILE, "Too many open files")) == 0
    now[0] += 10
    assert report(OSError(errno.EMFILE, "Too many open files")) == 1
