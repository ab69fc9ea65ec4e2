"""Metrics of the gateway processes."""

from __future__ import annotations

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
