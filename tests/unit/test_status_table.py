"""The table that bert-serving-status prints, with statuses written for these tests."""

from __future__ import annotations

from typing import Any

import pytest
from bert_serving.server.cli.status_table import Snapshot, rates, table

WORKER = {
    "name": "worker-0",
    "state": "ready",
    "forward_age_s": 0.2,
    "pid": 4711,
    "device": "cpu",
    "dtype": "bfloat16",
    "forward": "packed",
    "parity": 0.99998,
    "tokens_per_s": 21034,
}


def snapshot(at: float = 100.0, *, start: str = "2026-01-01T00:00:00+00:00", **changes: Any) -> Snapshot:
    info: dict[str, Any] = {
        "version": "2.0.0",
        "model_dir": "/models/a",
        "max_seq_len": 256,
        "pooling": ["auto"],
        "pooling_layer": [-1],
        "server_start_time": start,
        "server_current_time": "2026-01-02T02:03:04+00:00",
        "ready": True,
        "workers": [WORKER],
        "queue_texts": 12,
        "open_requests": 3,
        "connected_clients": 2,
        "num_batch": 40,
        "num_encoded_seq": 900,
        "num_encoded_token": 20_000,
        "statistic": {
            "num_data_request": 100,
            "num_total_seq": 1234,
            "num_total_client": 7,
            "num_active_client": 1,
        },
    }
    return Snapshot(info | changes, at)


def test_the_table_shows_the_whole_status() -> None:
    assert table(snapshot(), address="localhost:5555").splitlines() == [
        "server   localhost:5555, ready, up 1 d 2:03:04, version 2.0.0",
        "model    /models/a, max_seq_len 256",
        "pooling  auto, layer -1",
        "clients  2 connected, 1 active in the last 3 minutes, 7 in all",
        "queue    12 texts, 3 open requests",
        "",
        "worker    state  pid   device  dtype     forward  parity   tokens_per_s",
        "worker-0  ready  4711  cpu     bfloat16  packed   0.99998         21034",
        "",
        "            total  per second since its start",
        "requests      100                         0.0",
        "sequences   1,234                         0.0",
        "encoded       900                         0.0",
        "tokens     20,000                         0.2",
        "batches        40                         0.0",
    ]


def test_a_max_seq_len_of_null_is_shown_as_none() -> None:
    assert "max_seq_len NONE" in table(snapshot(max_seq_len=None), address="a:1")


def test_rates_are_measured_since_the_last_refresh() -> None:
    before = snapshot(100.0)
    now = snapshot(104.0, num_encoded_seq=980, num_batch=42)
    per_second, since = rates(now, before)
    assert since == "in the last 4.0 s"
    assert (per_second["encoded"], per_second["batches"], per_second["requests"]) == (20.0, 0.5, 0.0)
    assert "in the last 4.0 s" in table(now, before, address="a:1")


def test_rates_are_measured_since_the_start_after_a_restart() -> None:
    now = snapshot(104.0, start="2026-01-02T02:02:54+00:00", num_batch=5)
    per_second, since = rates(now, snapshot(100.0))
    assert (since, per_second["batches"]) == ("since its start", 0.5)


def test_a_server_that_has_just_started_has_no_rates() -> None:
    now = snapshot(start="2026-01-02T02:03:04+00:00")
    assert set(rates(now, None)[0].values()) == {None}
    assert "batches        40" in table(now, address="a:1")


@pytest.mark.parametrize(
    ("ready", "state", "said"),
    [(True, "ready", "ready"), (False, "starting", "starting"), (False, "ready", "not ready")],
)
def test_the_state_is_ready_starting_or_not_ready(ready: bool, state: str, said: str) -> None:
    shown = table(snapshot(ready=ready, workers=[{**WORKER, "state": state}]), address="a:1")
    assert f"a:1, {said}, up" in shown


def test_unknown_values_of_a_starting_worker_are_dashes() -> None:
    shown = table(snapshot(workers=[WORKER, {"name": "worker-1", "state": "starting"}]), address="a:1")
    (line,) = [line for line in shown.splitlines() if line.startswith("worker-1")]
    assert line.split() == ["worker-1", "starting", *"------"]


def test_a_status_with_few_keys_is_shown() -> None:
    shown = table(Snapshot({"statistic": {"num_data_request": 3}}, 0.0), address="a:1")
    assert "server   a:1, not ready, up -, version ?" in shown
    assert "queue    - texts" in shown


def test_values_cannot_send_control_characters_to_the_terminal() -> None:
    assert "\x1b" not in table(snapshot(model_dir="/a\x1b[2Jb\n"), address="a:1")
