"""Metrics of the gateway processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from bert_serving.protocol import ERROR_CODES
from bert_serving.server.gateway.metrics import UNKNOWN_ROUTE, GatewayMetrics
from bert_serving.server.logs import LogOptions
from bert_serving.server.supervisor.process import GatewayProgram
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

ROUTES = {"/embed": "Text Embeddings Inference"}


def test_processes_share_counts_even_if_the_folder_is_set_after_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This class is in use if prometheus_client was imported before the variable was set.
    monkeypatch.setattr(values, "ValueClass", values.MutexValue)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = GatewayMetrics(ROUTES)
    metrics.observe("/embed", 200, 0.1)
    assert list(tmp_path.iterdir())
    assert 'bert_serving_http_requests_total{route="/embed",status="200"} 1.0' in metrics.text(broker_up=True)


def test_without_a_folder_there_are_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    with pytest.raises(ValueError, match="PROMETHEUS_MULTIPROC_DIR"):
        GatewayMetrics(ROUTES)


def _forget_setting(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set the folder, and undo at the end of the test what GatewayMetrics does to prometheus_client."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))


def test_the_blocks_of_all_files_are_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_setting(monkeypatch, tmp_path)
    metrics = GatewayMetrics(ROUTES, ["a key"])
    metrics.observe("/embed", 200, 0.1, "overloaded", "a key")
    metrics.show_state(lag_s=0.0, num_connections=1, held_bytes=0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["counter_gateway.db", "gauge_livesum_gateway.db", "histogram_gateway.db"]  # only the reserved
    for path in tmp_path.iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_a_gateway_with_a_full_disk_counts_in_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _forget_setting(monkeypatch, tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    metrics = GatewayMetrics(ROUTES)
    metrics.observe("/embed", 200, 0.1)
    assert 'bert_serving_http_requests_total{route="/embed",status="200"} 1.0' in metrics.text(broker_up=True)
    assert list(tmp_path.iterdir()) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def read(metrics: GatewayMetrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text(broker_up=True))
    return {
        " ".join([sample.name.removeprefix("bert_serving_http_"), *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _forget_setting(monkeypatch, tmp_path)
    return tmp_path


def test_all_series_exist_from_the_start(folder: Path) -> None:
    found = read(GatewayMetrics(ROUTES, ["a-key"], process="gateway-0"))
    for route in ("/embed", UNKNOWN_ROUTE):
        names = ("texts_total", "tokens_total", "callers_left_total", "request_seconds_count")
        errors = [f"errors_total {code} {route}" for code in ERROR_CODES]
        for name in (f"requests_total {route} 200", *(f"{name} {route}" for name in names), *errors):
            assert found[name] == 0
    for name in ("requests_in_flight", "connections", "held_bytes", "event_loop_lag_seconds_count"):
        assert found[f"{name} gateway-0"] == 0
    assert [found[f"refusals_total {status}"] for status in (400, 408, 429, 431, 503)] == [0] * 5
    assert found["key_requests_total a-key"] == 0
    assert found["route_info Text Embeddings Inference /embed"] == found["route_info other other"] == 1


def test_a_process_that_is_started_again_continues_the_counts_and_not_the_gauges(folder: Path) -> None:
    first = GatewayMetrics(ROUTES, process="gateway-0")
    first.count_computed("/embed", 2, 7)
    first.observe("/embed", 200, 0.1)
    first.show_state(lag_s=0.01, num_connections=5, held_bytes=100)
    values.close_all_multiprocess_files()  # the end of the process
    second = GatewayMetrics(ROUTES, process="gateway-0")
    second.count_computed("/embed", 1, 3)
    found = read(second)
    assert (found["texts_total /embed"], found["tokens_total /embed"]) == (3, 10)
    assert found["requests_total /embed 200"] == found["request_seconds_count /embed"] == 1
    assert found["event_loop_lag_seconds_count gateway-0"] == 1
    assert found["connections gateway-0"] == found["held_bytes gateway-0"] == 0
    assert len(list(folder.iterdir())) == 3


def test_the_gauges_of_a_process_that_has_ended_vanish_and_its_counts_stay(folder: Path) -> None:
    ended = GatewayMetrics(ROUTES, process="gateway-0")
    ended.count_refusal(431)
    ended.show_state(lag_s=0.0, num_connections=5, held_bytes=0)
    other = GatewayMetrics(ROUTES, process="gateway-1")
    other.show_state(lag_s=0.0, num_connections=3, held_bytes=0)
    assert read(other)["connections gateway-0"] == 5
    env = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    program = GatewayProgram("gateway-0", "module:main", {}, LogOptions(), "/", env)
    for _ in range(2):
        program.forget()
        found = read(other)
        assert "connections gateway-0" not in found
        assert (found["connections gateway-1"], found["refusals_total 431"]) == (3, 1)


@pytest.mark.parametrize("start", [b"\xff" * 4, b"\x40\x00\x00\x00"], ids=["wrong length", "wrong entries"])
def test_a_file_that_cannot_be_read_is_replaced(
    folder: Path, start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "counter_gateway.db").write_bytes(start + b"\xff" * 4092)
    metrics = GatewayMetrics(ROUTES)
    metrics.count_computed("/embed", 2, 7)
    assert read(metrics)["texts_total /embed"] == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_limits_of_a_process_are_shown(folder: Path) -> None:
    metrics = GatewayMetrics({})
    metrics.set_limits(max_connections=4096, held_bytes=1 << 30)
    found = read(metrics)
    assert (found["max_connections gateway"], found["held_capacity_bytes gateway"]) == (4096, 1 << 30)
