"""The loop's clock does not count the pauses of the server."""

from __future__ import annotations

from bert_serving.server.broker.loop_clock import LoopClock


def clock_after(*turns: float) -> float:
    """Return the time that the clock shows after turns at these times, in monotonic seconds."""
    clock = LoopClock()
    for now in turns:
        clock.turn(now)
    return clock.now


def test_it_starts_at_zero_with_the_first_turn() -> None:
    assert LoopClock().now == 0.0
    assert clock_after(7000.0) == 0.0


def test_it_follows_the_time_while_the_loop_turns() -> None:
    assert clock_after(7000.0, 7000.5, 7000.75, 7001.5) == 1.5


def test_a_pause_of_the_server_counts_for_one_second() -> None:
    assert clock_after(7000.0, 7035.0) == 1.0  # SIGSTOP for 35 s
    assert clock_after(7000.0, 7000.5, 7600.5, 7601.0) == 2.0


def test_many_pauses_count_for_one_second_each() -> None:
    assert clock_after(*range(0, 400, 40)) == 9.0
