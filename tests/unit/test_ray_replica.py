"""What a replica in Ray Serve measures about itself. No Ray is started."""

from __future__ import annotations

from bert_serving.ray.replica import BusyMeter, ProgressWatch


def test_busy_is_the_part_of_the_time_since_the_last_call() -> None:
    meter = BusyMeter(100.0)
    assert meter.busy(2.0, 104.0) == 0.5
    assert meter.busy(2.0, 106.0) == 0.0
    assert meter.busy(9.0, 108.0) == 1.0
    assert meter.busy(9.0, 108.0) == 0.0


def test_requests_without_a_batch_are_no_progress() -> None:
    watch = ProgressWatch(100.0)
    assert watch.idle_s(1, 0, 130.0) == 30.0
    assert watch.idle_s(1, 0, 160.0) == 60.0
    assert watch.idle_s(1, 1, 170.0) == 0.0
    assert watch.idle_s(1, 1, 175.0) == 5.0


def test_a_replica_without_requests_is_not_stuck() -> None:
    watch = ProgressWatch(100.0)
    assert watch.idle_s(0, 0, 500.0) == 0.0
    assert watch.idle_s(1, 0, 501.0) == 1.0
