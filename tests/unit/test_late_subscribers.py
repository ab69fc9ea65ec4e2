"""First requests and subscriptions are matched in any order. Those without a counterpart are forgotten."""

from __future__ import annotations

from bert_serving.server.broker.late_subscribers import LateSubscribers
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB = b"alice", b"bob"


def test_first_request_before_its_subscription_is_returned_once() -> None:
    late_subscribers = LateSubscribers[str]()
    late_subscribers.ask(ALICE, "config?", 0.0)
    assert [late_subscribers.subscribe(ALICE, 1.0) for _ in range(2)] == [["config?"], []]


def test_first_request_after_its_subscription_is_not_returned() -> None:
    late_subscribers = LateSubscribers[str]()
    late_subscribers.subscribe(ALICE, 0.0)
    late_subscribers.ask(ALICE, "config?", 1.0)
    assert late_subscribers.subscribe(ALICE, 2.0) == []


def test_subscription_of_another_client_with_the_same_identity_does_not_count() -> None:
    late_subscribers = LateSubscribers[str]()
    late_subscribers.subscribe(ALICE, 0.0)
    late_subscribers.ask(ALICE, "of the other client", 0.0)
    late_subscribers.ask(ALICE, "of the new client", 1.0)
    assert late_subscribers.subscribe(ALICE, 1.0) == ["of the new client"]


def test_subscription_without_a_request_within_a_second_does_not_count() -> None:
    late_subscribers = LateSubscribers[str]()
    late_subscribers.subscribe(ALICE, 0.0)
    late_subscribers.ask(ALICE, "config?", 1.1)
    assert late_subscribers.subscribe(ALICE, 50.0) == ["config?"]


def test_an_old_request_is_not_returned() -> None:
    late_subscribers = LateSubscribers[str]()
    late_subscribers.ask(ALICE, "old", 0.0)
    late_subscribers.ask(ALICE, "young", 3.0)
    assert [late_subscribers.subscribe(ALICE, 60.1) for _ in range(2)] == [["young"], []]


def test_identities_are_independent() -> None:
    late_subscribers = LateSubscribers[str]()
    late_subscribers.ask(ALICE, "config?", 0.0)
    assert late_subscribers.subscribe(BOB, 0.0) == []
    assert late_subscribers.subscribe(ALICE, 0.0) == ["config?"]


def test_requests_of_one_identity_are_returned_in_their_order() -> None:
    late_subscribers = LateSubscribers[str]()
    for request in ("first", "second"):
        late_subscribers.ask(ALICE, request, 0.0)
    assert [late_subscribers.subscribe(ALICE, 0.0) for _ in range(3)] == [["first"], ["second"], []]


def test_many_identities_and_repeated_requests_take_bounded_memory() -> None:
    late_subscribers = LateSubscribers[str]()
    for i in range(20_000):
        late_subscribers.ask(b"%d" % i, "config?", 0.0)
        late_subscribers.ask(ALICE, "config?", 0.0)
        late_subscribers.subscribe(b"listener %d" % i, 0.0)
    assert repr(late_subscribers) == "<LateSubscribers questions=10000 subscriptions=10000>"
    assert sum(map(len, (late_subscribers.subscribe(ALICE, 0.0) for _ in range(100)))) == 16


def test_old_entries_are_forgotten_when_new_ones_come() -> None:
    late_subscribers = LateSubscribers[str]()
    for i in range(100):
        late_subscribers.ask(b"%d" % i, "config?", 0.0)
        late_subscribers.subscribe(b"listener %d" % i, 0.0)
    late_subscribers.ask(ALICE, "config?", 60.1)
    late_subscribers.subscribe(BOB, 60.1)
    assert repr(late_subscribers) == "<LateSubscribers questions=1 subscriptions=1>"


@given(st.lists(st.booleans()))
def test_each_request_matches_one_subscription(steps: list[bool]) -> None:
    late_subscribers, balance, missed = LateSubscribers[int](), 0, 0
    for is_request in steps[:16]:
        if is_request:
            late_subscribers.ask(ALICE, 1, 0.0)
            balance += 1
        else:
            missed += balance > 0
            balance -= 1
            missed -= len(late_subscribers.subscribe(ALICE, 0.0))
        assert missed == 0
