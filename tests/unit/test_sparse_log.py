"""The number of warnings is limited separately for each kind, so that one kind does not hide another."""

from __future__ import annotations

import pytest
from bert_serving.server.broker.sparse_log import SparseLog


def test_each_kind_of_warning_is_logged_once_in_ten_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("bert_serving.server.broker.sparse_log.time.monotonic", lambda: now)
    sparse = SparseLog()
    for _ in range(3):
        sparse.warning("ignored %s", "a message")
    sparse.warning("dropped %s", "a reply")
    now += 10
    sparse.warning("ignored %s", "a message")
    assert caplog.messages == [
        "ignored a message (0 more since the last warning)",
        "dropped a reply (0 more since the last warning)",
        "ignored a message (2 more since the last warning)",
    ]
