"""What bert-serving-status -watch computes from the statuses and metrics that it has read."""

from __future__ import annotations

import pytest
from bert_serving.server.broker.metrics import BrokerMetrics
from bert_serving.server.cli.readings import CURVE_S, History, Reading, quantile_of, reading, why_not_ready

STARTED = {"server_start_time": "2026-01-01T00:00:00+00:00", "ready": True}


class Server:
    """A server that counts; `read` reads it."""

    def __init__(self, start: str = "2026-01-01T00:00:00+00:00") -> None:
        self.metrics = BrokerMetrics(["worker-0"])
        self.info = {"server_start_time": start, "ready": True}

    def read(self, at: float) -> Reading:
        return reading(at, self.info, self.metrics.text())


def test_a_reading_has_the_values_of_the_metrics() -> None:
    server = Server()
    server.metrics.requests.inc(3)
    server.metrics.texts.inc(7)
    server.metrics.tokens.inc(70)
    server.metrics.queue_texts.set(5)
    server.metrics.queue_age.set(1.5)
    server.metrics.errors.labels("Overloaded").inc(2)
    server.metrics.busy.labels("worker-0").inc(0.25)
    server.metrics.latency.observe(0.004)
    read = server.read(1.0)
    assert read.totals == {"requests": 3, "texts": 7, "tokens": 70}
    assert (read.queue_texts, read.queue_age_s, read.errors["Overloaded"]) == (5, 1.5, 2)
    assert (read.busy_s["worker-0"], read.latency[float("inf")]) == (0.25, 1)


def test_metrics_that_the_server_does_not_have_count_as_zero() -> None:
    read = reading(1.0, STARTED, "")
    assert read.totals == {"requests": 0, "texts": 0, "tokens": 0}
    assert (read.queue_texts, read.queue_age_s) == (0, 0)


def test_series_of_one_metric_are_added_up_whatever_their_labels() -> None:
    text = '# TYPE bert_serving_texts_total counter\nbert_serving_texts_total{model="a"} 2\n'
    read = reading(1.0, STARTED, f'{text}bert_serving_texts_total{{model="b"}} 3\n')
    assert read.totals["texts"] == 5


def test_rates_busy_share_latency_and_errors_are_those_of_the_last_seconds() -> None:
    server, history = Server(), History()
    server.metrics.errors.labels("InvalidRequest").inc(9)
    history.add(server.read(100.0))
    server.metrics.texts.inc(20)
    server.metrics.busy.labels("worker-0").inc(1.0)
    server.metrics.latency.observe(0.004)
    server.metrics.errors.labels("InvalidRequest").inc()
    history.add(server.read(102.0))
    assert (history.rate("texts"), history.busy_share("worker-0")) == (10.0, 0.5)
    assert history.recent_errors() == {"InvalidRequest": 1}
    latency_s = history.latency_s(0.5)
    assert latency_s is not None
    assert 0.001 < latency_s < 0.01


def test_nothing_is_known_from_one_reading() -> None:
    history = History()
    history.add(Server().read(1.0))
    assert (history.rate("texts"), history.busy_share("worker-0"), history.latency_s(0.5)) == (None, None, None)
    assert history.recent_errors() == {}


def test_a_server_that_was_started_again_is_not_compared_with_the_one_before() -> None:
    before, after, history = Server(), Server("2026-01-02T00:00:00+00:00"), History()
    before.metrics.texts.inc(1000)
    history.add(before.read(100.0))
    history.add(after.read(101.0))
    assert history.rate("texts") is None
    after.metrics.texts.inc(8)
    history.add(after.read(102.0))
    assert history.rate("texts") == 8.0
    assert [rate for rate in history.curve("texts", 300) if rate is not None] == [8.0]


@pytest.mark.parametrize("seconds", [5.1, 70.0, 400.0], ids=str)
def test_rates_are_known_if_the_server_is_read_seldom(seconds: float) -> None:
    server, history = Server(), History()
    for at in (1.0, 2.0, 3.0):
        history.add(server.read(at * seconds))
        server.metrics.texts.inc(8 * seconds)
        server.metrics.errors.labels("Overloaded").inc()
    assert history.rate("texts") == pytest.approx(8.0)
    assert history.recent_errors()["Overloaded"] >= 1


def test_a_curve_has_the_newest_rate_at_its_end_and_forgets_old_ones() -> None:
    server, history = Server(), History()
    for at in range(400):
        server.metrics.texts.inc(at)
        history.add(server.read(float(at)))
    curve = history.curve("texts", int(CURVE_S))
    assert curve[-1] == 399
    assert None not in curve[1:]
    assert len(history._readings) == CURVE_S + 1


@pytest.mark.parametrize(("quantile", "seconds"), [(0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0)], ids=str)
def test_a_quantile_lies_within_its_bucket(quantile: float, seconds: float) -> None:
    assert quantile_of({1.0: 2, 2.0: 4, float("inf"): 4}, quantile) == pytest.approx(seconds)


def test_a_quantile_above_all_limits_is_the_highest_limit() -> None:
    assert quantile_of({1.0: 0, 2.0: 0, float("inf"): 4}, 0.5) == 2.0
    assert quantile_of({1.0: 0, float("inf"): 0}, 0.5) is None
    assert quantile_of({}, 0.5) is None


def test_the_reasons_why_a_server_is_not_ready() -> None:
    workers = [{"name": "worker-0", "state": "stale"}, {"name": "worker-1", "state": "starting"}]
    assert list(why_not_ready({"ready": False, "workers": workers})) == [
        "worker-0 has computed nothing for a minute",
        "worker-1 is starting",
    ]
    assert list(why_not_ready({"ready": True, "workers": workers[:1]})) == []
    (reason,) = why_not_ready({"ready": False, "workers": [{"name": "worker-0", "state": "ready"}]})
    assert "stopping" in reason
