"""What the dashboard of bert-serving-status -watch shows, drawn without a terminal."""

from __future__ import annotations

import io

import pytest
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.cli.dashboard import screen, sparkline
from bert_serving.server.cli.readings import History, reading
from rich.console import Console

WORKER = {"name": "worker-0", "state": "ready", "device": "cpu", "dtype": "bfloat16", "forward": "packed"}
INFO = {
    "server_start_time": "2026-01-01T00:00:00+00:00",
    "server_current_time": "2026-01-01T01:02:03+00:00",
    "version": "2.0.0",
    "model_dir": "/models/a",
    "ready": True,
    "workers": [WORKER],
}


def shown(history: History, problem: str | None = None, *, width: int = 110) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(screen(history, problem, address="localhost:5555", now=103.0))
    return out.getvalue()


def history_of(**changes: object) -> History:
    metrics, history = BrokerMetrics(["worker-0"]), History()
    for at in (100.0, 101.0):
        metrics.texts.inc(40)
        metrics.busy.labels("worker-0").inc(0.5)
        metrics.errors.labels("Overloaded").inc()
        metrics.latency.observe(0.004)
        metrics.queue_texts.set(12)
        metrics.queue_age.set(1.5)
        history.add(reading(at, INFO | changes, metrics.text()))
    return history


def test_it_shows_state_rates_queue_errors_and_workers() -> None:
    text = shown(history_of())
    for expected in ("localhost:5555", "ready, up 1:02:03, version 2.0.0", "model /models/a", "12 texts"):
        assert expected in text
    assert "the oldest waits 1.5 s" in text
    assert "2 since the start, in the last 60 s: Overloaded 1" in text
    (worker,) = (line for line in text.splitlines() if "worker-0" in line)
    assert worker.split() == ["worker-0", "ready", "cpu", "bfloat16", "packed", "-", "█████░░░░░", "50%"]
    (texts,) = (line for line in text.splitlines() if line.strip().startswith("texts"))
    assert texts.split() == ["texts", "40.0", "█", "40.0"]


@pytest.mark.parametrize("width", [80, 60, 50])
def test_in_a_narrow_terminal_a_curve_still_ends_with_the_newest_rate(width: int) -> None:
    (texts,) = (line for line in shown(history_of(), width=width).splitlines() if line.strip().startswith("texts"))
    assert texts.split() == ["texts", "40.0", "█", "40.0"]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, ["worker-0", "ready", "cuda:0", "bfloat16", "compiled", "0.999987", "█████░░░░░", "50%"]),
        (70, ["worker-0", "ready", "cuda:0", "compiled", "█████░░░░░", "50%"]),
        (50, ["worker-0", "ready", "█████░░░░░", "50%"]),
        (36, ["worker-0", "ready", "50%"]),
    ],
)
def test_in_a_narrow_terminal_less_is_shown_of_a_worker_and_no_value_is_cut(
    width: int, expected: list[str]
) -> None:
    workers = [WORKER | {"device": "cuda:0", "forward": "compiled", "parity": 0.999987}]
    text = shown(history_of(workers=workers), width=width)
    assert "…" not in text
    (worker,) = (line for line in text.splitlines() if "worker-0" in line)
    assert worker.split() == expected


def test_in_40_columns_a_rate_of_millions_has_its_curve() -> None:
    history = history_of()
    metrics = BrokerMetrics()
    metrics.tokens.inc(2_345_678)
    history.add(reading(102.0, INFO, metrics.text()))
    text = shown(history, width=40)
    assert "…" not in text
    (tokens,) = (line for line in text.splitlines() if line.startswith("tokens"))
    assert tokens.split() == ["tokens", "1,172,839.0", "█"]
    assert "per second         now last 5 minutes" in text


def test_it_says_why_a_server_is_not_ready() -> None:
    text = shown(history_of(ready=False, workers=[{"name": "worker-0", "state": "starting"}]))
    assert "not ready, up" in text
    assert "worker-0 is starting" in text


def test_a_server_that_does_not_reply_keeps_its_last_values_with_their_age() -> None:
    text = shown(history_of(), "cannot reach the server")
    assert "no reply: cannot reach the server; what is below was read 2 s ago" in text
    assert "worker-0" in text


def test_before_the_first_reply_it_says_that_it_connects() -> None:
    assert "connecting" in shown(History())


def test_values_of_the_server_are_no_markup_and_no_control_characters() -> None:
    text = shown(history_of(model_dir="/a[red]b\x1b[2J"))
    assert "/a[red]b?[2J" in text


def test_a_sparkline_has_a_bar_for_each_value_and_a_gap_for_each_unknown_one() -> None:
    assert sparkline([None, 0, 5, 10]) == " ▁▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
