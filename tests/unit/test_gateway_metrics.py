"""Metrics of the gateway processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from bert_serving.server.gateway.metrics import GatewayMetrics
from prometheus_client import values


def test_processes_share_counts_even_if_the_folder_is_set_after_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This class is in use if prometheus_client was imported before the variable was set.
    monkeypatch.setattr(values, "ValueClass", values.MutexValue)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = GatewayMetrics(["/embed"])
    metrics.observe("/embed", 200, 0.1)
    assert list(tmp_path.iterdir())
    assert 'bert_serving_http_requests_total{route="/embed",status="200"} 1.0' in metrics.text(broker_up=True)


def test_without_a_folder_there_are_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    with pytest.raises(ValueError, match="PROMETHEUS_MULTIPROC_DIR"):
        GatewayMetrics(["/embed"])


def _forget_setting(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set the folder, and undo at the end of the test what GatewayMetrics does to prometheus_client."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))


def test_the_blocks_of_all_files_are_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_setting(monkeypatch, tmp_path)
    metrics = GatewayMetrics(["/embed"], ["a key"])
    metrics.observe("/embed", 200, 0.1, "overloaded", "a key")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"counter_{os.getpid()}.db", f"histogram_{os.getpid()}.db"]  # no file besides the reserved
    for path in tmp_path.iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_a_gateway_with_a_full_disk_counts_in_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _forget_setting(monkeypatch, tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    metrics = GatewayMetrics(["/embed"])
    metrics.observe("/embed", 200, 0.1)
    assert 'bert_serving_http_requests_total{route="/embed",status="200"} 1.0' in metrics.text(broker_up=True)
    assert list(tmp_path.iterdir()) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
