"""A client's first request is matched with its subscription, in either order. Unmatched items are forgotten."""

from __future__ import annotations

from bert_serving.server.broker.late_subscribers import LateSubscribers
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB = b"alice", b"bob"


def test_a_request_before_its_subscription_is_returned_once() -> None:
    late = LateSubscribers[str]()
    late.note_request(ALICE, "a request", 0.0)
    assert [late.subscribe(ALICE, 1.0) for _ in range(2)] == [["a request"], []]


def test_a_request_after_its_subscription_is_not_returned() -> None:
    late = LateSubscribers[str]()
    late.subscribe(ALICE, 0.0)
    late.note_request(ALICE, "a request", 1.0)
    assert late.subscribe(ALICE, 2.0) == []


def test_a_subscription_of_another_client_does_not_match_the_late_clients_request() -> None:
    late = LateSubscribers[str]()
    late.subscribe(ALICE, 0.0)
    late.note_request(ALICE, "the other client's", 0.0)
    late.note_request(ALICE, "the late one's", 1.0)
    assert late.subscribe(ALICE, 1.0) == ["the late one's"]


def test_a_subscription_without_a_request_does_not_match_a_later_request() -> None:
    late = LateSubscribers[str]()
    late.subscribe(ALICE, 0.0)
    late.note_request(ALICE, "a request", 1.1)
    assert late.subscribe(ALICE, 50.0) == ["a request"]


def test_an_old_request_is_not_returned() -> None:
    late = LateSubscribers[str]()
    late.note_request(ALICE, "old", 0.0)
    late.note_request(ALICE, "young", 3.0)
    assert [late.subscribe(ALICE, 60.1) for _ in range(2)] == [["young"], []]


def test_a_request_matches_only_its_own_identity() -> None:
    late = LateSubscribers[str]()
    late.note_request(ALICE, "a request", 0.0)
    assert late.subscribe(BOB, 0.0) == []
    assert late.subscribe(ALICE, 0.0) == ["a request"]


def test_requests_with_one_identity_are_matched_in_order() -> None:
    late = LateSubscribers[str]()
    for request in ("first", "second"):
        late.note_request(ALICE, request, 0.0)
    assert [late.subscribe(ALICE, 0.0) for _ in range(3)] == [["first"], ["second"], []]


def test_invented_identities_and_repeated_requests_take_bounded_memory() -> None:
    late = LateSubscribers[str]()
    for i in range(20_000):
        late.note_request(b"%d" % i, "a request", 0.0)
        late.note_request(ALICE, "a request", 0.0)
        late.subscribe(b"listener %d" % i, 0.0)
    assert repr(late) == "<LateSubscribers requests=10000 subscriptions=10000>"
    assert sum(map(len, (late.subscribe(ALICE, 0.0) for _ in range(100)))) == 16


def test_old_items_are_forgotten_when_new_ones_arrive() -> None:
    late = LateSubscribers[str]()
    for i in range(100):
        late.note_request(b"%d" % i, "a request", 0.0)
        late.subscribe(b"listener %d" % i, 0.0)
    late.note_request(ALICE, "a request", 60.1)
    late.subscribe(BOB, 60.1)
    assert repr(late) == "<LateSubscribers requests=1 subscriptions=1>"


@given(st.lists(st.booleans()))
def test_each_request_matches_one_subscription(steps: list[bool]) -> None:
    late, balance, missed = LateSubscribers[int](), 0, 0
    for is_request in steps[:16]:
        if is_request:
            late.note_request(ALICE, 1, 0.0)
            balance += 1
        else:
            missed += balance > 0
            balance -= 1
            missed -= len(late.subscribe(ALICE, 0.0))
        assert missed == 0
