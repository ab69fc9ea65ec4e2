"""First questions and subscriptions meet, whichever comes first, and what stays alone is forgotten."""

from __future__ import annotations

from bert_serving.server.broker.late_subscribers import LateSubscribers
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB = b"alice", b"bob"


def test_a_question_whose_subscription_comes_later_is_returned_once() -> None:
    newcomers = LateSubscribers[str]()
    newcomers.ask(ALICE, "config?", 0.0)
    assert [newcomers.subscribe(ALICE, 1.0) for _ in range(2)] == [["config?"], []]


def test_a_question_behind_its_subscription_is_not() -> None:
    newcomers = LateSubscribers[str]()
    newcomers.subscribe(ALICE, 0.0)
    newcomers.ask(ALICE, "config?", 1.0)
    assert newcomers.subscribe(ALICE, 2.0) == []


def test_a_twin_that_was_there_before_does_not_make_up_for_the_newcomer() -> None:
    newcomers = LateSubscribers[str]()
    newcomers.subscribe(ALICE, 0.0)
    newcomers.ask(ALICE, "the twin's", 0.0)
    newcomers.ask(ALICE, "the newcomer's", 1.0)
    assert newcomers.subscribe(ALICE, 1.0) == ["the newcomer's"]


def test_a_subscription_that_nothing_followed_makes_up_for_nothing_later() -> None:
    newcomers = LateSubscribers[str]()
    newcomers.subscribe(ALICE, 0.0)
    newcomers.ask(ALICE, "config?", 1.1)
    assert newcomers.subscribe(ALICE, 50.0) == ["config?"]


def test_an_old_question_is_not_returned() -> None:
    newcomers = LateSubscribers[str]()
    newcomers.ask(ALICE, "old", 0.0)
    newcomers.ask(ALICE, "young", 3.0)
    assert [newcomers.subscribe(ALICE, 60.1) for _ in range(2)] == [["young"], []]


def test_identities_have_nothing_to_do_with_each_other() -> None:
    newcomers = LateSubscribers[str]()
    newcomers.ask(ALICE, "config?", 0.0)
    assert newcomers.subscribe(BOB, 0.0) == []
    assert newcomers.subscribe(ALICE, 0.0) == ["config?"]


def test_newcomers_of_one_identity_come_out_in_their_order() -> None:
    newcomers = LateSubscribers[str]()
    for question in ("first", "second"):
        newcomers.ask(ALICE, question, 0.0)
    assert [newcomers.subscribe(ALICE, 0.0) for _ in range(3)] == [["first"], ["second"], []]


def test_made_up_identities_and_repeated_questions_take_bounded_memory() -> None:
    newcomers = LateSubscribers[str]()
    for i in range(20_000):
        newcomers.ask(b"%d" % i, "config?", 0.0)
        newcomers.ask(ALICE, "config?", 0.0)
        newcomers.subscribe(b"listener %d" % i, 0.0)
    assert repr(newcomers) == "<LateSubscribers questions=10000 subscriptions=10000>"
    assert sum(map(len, (newcomers.subscribe(ALICE, 0.0) for _ in range(100)))) == 16


def test_what_is_old_is_forgotten_when_others_come() -> None:
    newcomers = LateSubscribers[str]()
    for i in range(100):
        newcomers.ask(b"%d" % i, "config?", 0.0)
        newcomers.subscribe(b"listener %d" % i, 0.0)
    newcomers.ask(ALICE, "config?", 60.1)
    newcomers.subscribe(BOB, 60.1)
    assert repr(newcomers) == "<LateSubscribers questions=1 subscriptions=1>"


@given(st.lists(st.booleans()))
def test_each_question_meets_one_subscription(steps: list[bool]) -> None:
    newcomers, balance, missed = LateSubscribers[int](), 0, 0
    for is_question in steps[:16]:
        if is_question:
            newcomers.ask(ALICE, 1, 0.0)
            balance += 1
        else:
            missed += balance > 0
            balance -= 1
            missed -= len(newcomers.subscribe(ALICE, 0.0))
        assert missed == 0
