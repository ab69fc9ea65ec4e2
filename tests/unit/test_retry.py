"""When refused requests are sent again: random pauses around the time that the server names, within a deadline."""

from __future__ import annotations

import math

import pytest
from bert_serving.client.retry import RETRY_S, Retry
from bert_serving.protocol import DeadlineExceeded, Frames, InvalidRequest, Overloaded, ServingError, Unavailable

FRAMES: Frames = [b"me", b'["a"]', b"1", b"1"]
BUSY = Overloaded("full", retry_after_ms=200)


def retry_of(draw: float, *, deadline: float = math.inf) -> Retry:
    """Return a Retry with request 1, whose random numbers are all equal."""
    retry = Retry(lambda: draw)
    retry.keep(1, FRAMES, deadline)
    return retry


def pauses(retry: Retry, error: ServingError, count: int) -> list[float]:
    """Return the pauses after this number of refusals. Each refusal arrives at once after its attempt."""
    found, now = [], 0.0
    for _ in range(count):
        assert retry.refuse(1, error, now)
        found.append(retry.next_s(now))
        now += found[-1]
        assert retry.due(now) == [FRAMES]
    return found


@pytest.mark.parametrize("error", [BUSY, Unavailable("no worker", retry_after_ms=200)])
@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_first_pause_is_random_with_the_servers_time_as_its_mean(error: ServingError, draw: float) -> None:
    assert pauses(retry_of(draw), error, 1) == [pytest.approx(2 * draw * 0.2)]


def test_pauses_grow_up_to_a_limit() -> None:
    assert pauses(retry_of(0.5), BUSY, 7) == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_pause_is_not_shortened_below_what_the_server_names() -> None:
    assert pauses(retry_of(0.5), Overloaded("full", retry_after_ms=20_000), 2) == pytest.approx([20.0, 20.0])


def test_even_a_server_that_names_no_pause_gets_one() -> None:
    assert pauses(retry_of(0.5), Overloaded("full", retry_after_ms=0), 2) == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full"),
        Unavailable("stopping"),
        InvalidRequest("no"),
        DeadlineExceeded("late", retry_after_ms=1),
    ],
)
def test_other_errors_are_not_followed_by_an_attempt(error: ServingError) -> None:
    retry = retry_of(0.5)
    assert not retry.refuse(1, error, 0.0)
    assert retry.due(1e9) == []


def test_no_attempt_is_made_at_or_after_the_deadline() -> None:
    assert retry_of(0.5, deadline=0.21).refuse(1, BUSY, 0.0)
    assert not retry_of(0.5, deadline=0.2).refuse(1, BUSY, 0.0)


def test_without_a_deadline_attempts_end_a_minute_after_the_first_refusal() -> None:
    retry = retry_of(0.5)
    now = 1000.0
    while retry.refuse(1, BUSY, now):
        now += retry.next_s(now)
        assert len(retry.due(now)) == 1
    assert 1000.0 + RETRY_S - 5.0 <= now < 1000.0 + RETRY_S


def test_attempts_begin_anew_when_a_request_was_accepted_and_then_lost() -> None:
    retry = retry_of(0.5)
    assert retry.refuse(1, BUSY, 1000.0)
    retry.due(1001.0)
    assert retry.refuse(1, BUSY, 1000.0 + RETRY_S + 1)
    assert retry.next_s(1000.0 + RETRY_S + 1) == pytest.approx(0.2)


def test_each_request_is_due_once_at_its_time() -> None:
    retry = retry_of(0.5)
    second: Frames = [b"me", b'["b"]', b"2", b"1"]
    retry.keep(2, second)
    retry.refuse(2, BUSY, 0.0)
    retry.refuse(1, BUSY, 1.0)
    assert (retry.due(0.1), retry.due(0.2), retry.due(0.9), retry.due(1.3)) == ([], [second], [], [FRAMES])


def test_forgotten_request_is_not_sent_again() -> None:
    retry = retry_of(0.5)
    retry.refuse(1, BUSY, 0.0)
    retry.forget(1)
    assert (retry.due(10.0), retry.next_s(10.0)) == ([], float("inf"))
    assert not retry.refuse(1, BUSY, 11.0)
