"""Subscriptions are counted for each connection, and each subscription ends once."""

from __future__ import annotations

from bert_serving.server.broker.subscriptions import Subscriptions
from hypothesis import given
from hypothesis import strategies as st

ALICE, BOB = 11, 12  # the numbers of two connections
MANY = 256


def names(count: int, prefix: str = "") -> list[bytes]:
    return [f"{prefix}{i}".encode() for i in range(count)]


def full(connection: int, *, prefix: str = "") -> Subscriptions:
    subscriptions = Subscriptions()
    assert all(subscriptions.add(connection, name) for name in names(MANY, prefix))
    return subscriptions


def test_the_subscriptions_of_one_connection_are_limited() -> None:
    subscriptions = full(ALICE)
    assert not subscriptions.has_refused(ALICE)
    assert not subscriptions.add(ALICE, b"one more")
    assert subscriptions.has_refused(ALICE)


def test_the_limit_does_not_affect_another_connection() -> None:
    subscriptions = full(ALICE)
    for name in names(60_000, "more"):
        subscriptions.add(ALICE, name)
    assert subscriptions.add(BOB, b"bob")
    assert not subscriptions.has_refused(BOB)


def test_nothing_is_left_of_a_broken_connection() -> None:
    subscriptions = full(ALICE)
    subscriptions.add(ALICE, b"refused")
    ended = [subscriptions.remove(None, name) for name in [*names(MANY), b"refused"]]
    assert ended == [True] * MANY + [False]
    assert repr(subscriptions) == "<Subscriptions accepted=0 refused=0>"
    assert not subscriptions.has_refused(ALICE)
    assert subscriptions.add(ALICE, b"the number belongs to another connection now")


def test_the_end_of_a_refused_subscription_does_not_end_another() -> None:
    subscriptions = full(ALICE)
    subscriptions.add(BOB, b"bob")
    subscriptions.add(ALICE, b"bob")
    assert not subscriptions.remove(None, b"bob")
    assert subscriptions.remove(None, b"bob")


def test_a_connection_cannot_end_a_subscription_that_it_does_not_have() -> None:
    subscriptions = Subscriptions()
    subscriptions.add(BOB, b"bob")
    assert not subscriptions.remove(ALICE, b"bob")
    assert not subscriptions.remove(None, b"unknown")
    assert subscriptions.remove(BOB, b"bob")


def test_a_repeated_subscription_ends_once() -> None:
    subscriptions = Subscriptions()
    assert subscriptions.add(ALICE, b"twice")
    assert not subscriptions.add(ALICE, b"twice")
    assert not subscriptions.has_refused(ALICE)
    assert subscriptions.remove(None, b"twice")
    assert not subscriptions.remove(None, b"twice")


def test_connections_may_share_an_identity() -> None:
    subscriptions = Subscriptions()
    assert subscriptions.add(ALICE, b"shared")
    assert subscriptions.add(BOB, b"shared")
    assert subscriptions.remove(ALICE, b"shared")
    assert subscriptions.remove(None, b"shared")


def test_subscriptions_of_closed_connections_end_one_by_one() -> None:
    subscriptions = Subscriptions()
    subscriptions.add(BOB, b"bob")
    assert not subscriptions.add(None, b"bob")
    assert not subscriptions.add(None, b"bob")
    assert [subscriptions.remove(None, b"bob") for _ in range(3)] == [False, False, True]


def test_a_new_connection_gets_a_few_subscriptions_even_if_there_are_many() -> None:
    subscriptions = Subscriptions()
    for connection in range(200):
        for name in names(MANY, f"{connection}/"):
            subscriptions.add(connection, name)
    assert [subscriptions.add(1000, name) for name in names(3)] == [True, True, False]


NAMES = st.sampled_from([b"a", b"b", b"c"])
CONNECTIONS = st.sampled_from([ALICE, BOB, None])


@given(st.lists(st.tuples(st.booleans(), CONNECTIONS, NAMES)))
def test_the_number_of_accepted_subscriptions_is_exact(
    steps: list[tuple[bool, int | None, bytes]],
) -> None:
    subscriptions = Subscriptions()
    accepted = 0
    for is_new, connection, name in steps:
        if is_new:
            accepted += subscriptions.add(connection, name)
        else:
            accepted -= subscriptions.remove(connection, name)
        assert f"accepted={accepted} " in repr(subscriptions)
