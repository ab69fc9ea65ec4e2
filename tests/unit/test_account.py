"""The account of held bytes: what one flow may hold, and what stays free for others."""

from __future__ import annotations

from collections import Counter

import pytest
from bert_serving.server.broker.account import Account, NoRoom, Reservation
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

ALICE, BOB, CAROL = b"alice", b"bob", b"carol"


def make_account(capacity: int = 1000, share: float = 0.5, reserve: int = 0, small: int = 0) -> Account:
    return Account(capacity, share=share, reserve=reserve, small=small)


def test_a_flow_that_is_alone_holds_at_most_its_share() -> None:
    account = make_account()
    account.reserve(ALICE, 500)
    with pytest.raises(NoRoom):
        account.reserve(ALICE, 1)


def test_a_newcomer_always_finds_room() -> None:
    account = make_account()
    account.reserve(ALICE, 500)
    account.reserve(BOB, 250)
    with pytest.raises(NoRoom) as caught:
        account.reserve(CAROL, 126)
    assert (caught.value.limit, caught.value.missing) == (125, 1)
    account.reserve(CAROL, 125)


def test_a_flow_that_holds_little_gets_a_little_from_the_reserve() -> None:
    account = make_account(share=1.0, reserve=100, small=10)
    account.reserve(ALICE, 1000)
    account.reserve(BOB, 10)
    with pytest.raises(NoRoom):
        account.reserve(BOB, 1)


def test_the_reserve_is_limited() -> None:
    account = make_account(share=1.0, reserve=15, small=10)
    account.reserve(ALICE, 1000)
    account.reserve(BOB, 10)
    with pytest.raises(NoRoom):
        account.reserve(CAROL, 6)
    assert account.held == 1010


@pytest.mark.parametrize(("amount", "is_possible"), [(500, True), (501, False)])
def test_an_amount_that_can_never_fit_is_told_apart(amount: int, is_possible: bool) -> None:
    account = make_account()
    account.reserve(ALICE, 400)
    with pytest.raises(NoRoom) as caught:
        account.reserve(ALICE, amount)
    assert caught.value.is_possible == is_possible


def test_growth_that_can_never_fit_is_told_apart() -> None:
    reservation = make_account().reserve(ALICE, 400)
    for amount, is_possible in ((501, False), (1000, False)):
        with pytest.raises(NoRoom) as caught:
            reservation.resize(amount)
        assert caught.value.is_possible == is_possible


def test_a_flow_may_have_a_smaller_share_but_no_larger_one() -> None:
    account = make_account()
    with pytest.raises(NoRoom):
        account.reserve(ALICE, 101, share=0.1)
    with pytest.raises(NoRoom):
        account.reserve(ALICE, 501, share=0.9)


def test_growth_keeps_the_share_of_the_reservation() -> None:
    account = make_account()
    reservation = account.reserve(ALICE, 100, share=0.1)
    with pytest.raises(NoRoom):
        reservation.resize(101)
    assert (reservation.amount, account.held) == (100, 100)


def test_a_reservation_can_always_shrink() -> None:
    account = make_account()
    reservation = account.reserve(ALICE, 500)
    account.reserve(BOB, 250)  # now ALICE may hold only 375
    reservation.resize(400)
    assert account.held_by(ALICE) == 400


def test_a_second_release_has_no_effect() -> None:
    account = make_account()
    reservation = account.reserve(ALICE, 100)
    account.reserve(ALICE, 1)
    reservation.release()
    reservation.release()
    assert account.held == 1


def test_what_is_held_is_counted_by_group() -> None:
    account = make_account()
    small, large = account.reserve(ALICE, 100, group="small"), account.reserve(BOB, 200, group="large")
    small.resize(50)
    large.move_to(ALICE)
    assert account.held_in == {"small": 50, "large": 200}
    large.release()
    assert account.held_in == {"small": 50, "large": 0}


def test_flows_that_hold_nothing_are_forgotten() -> None:
    account = make_account()
    account.reserve(ALICE, 100).release()
    assert account.num_flows == 0


def test_a_reservation_moves_to_another_flow() -> None:
    account = make_account()
    reservation = account.reserve(ALICE, 400)
    reservation.move_to(BOB)
    assert (account.held_by(ALICE), account.held_by(BOB), account.held) == (0, 400, 400)


def test_a_reservation_that_cannot_move_stays_where_it_is() -> None:
    account = make_account()
    account.reserve(BOB, 300)
    reservation = account.reserve(ALICE, 300)
    with pytest.raises(NoRoom):
        reservation.move_to(BOB)
    assert (account.held_by(ALICE), account.held_by(BOB)) == (300, 300)


def test_the_largest_amount_of_one_flow_is_known() -> None:
    account = make_account()
    account.reserve(ALICE, account.largest)
    assert account.held == 500


FLOWS = st.sampled_from([ALICE, BOB, CAROL, b"d", b"e", b"f"])
AMOUNTS = st.one_of(st.integers(0, 12), st.integers(0, 700))
CAPACITY, RESERVE, SMALL, SHARE = 1000, 50, 10, 0.5


class AnyReservations(RuleBasedStateMachine):
    """In any order of calls, the sums are right, no limit is passed, and a newcomer finds room."""

    def __init__(self) -> None:
        super().__init__()
        self.account = make_account(CAPACITY, SHARE, RESERVE, SMALL)
        self.reservations: list[Reservation] = []

    @rule(flow=FLOWS, amount=AMOUNTS)
    def reserve(self, flow: bytes, amount: int) -> None:
        is_newcomer = self.account.held_by(flow) == 0
        free = CAPACITY - self.account.held
        try:
            self.reservations.append(self.account.reserve(flow, amount))
        except NoRoom:
            assert amount > 0
            assert not (is_newcomer and amount <= int(SHARE * free))

    @precondition(lambda self: self.reservations)
    @rule(data=st.data(), amount=AMOUNTS)
    def resize(self, data: st.DataObject, amount: int) -> None:
        reservation = data.draw(st.sampled_from(self.reservations))
        before = reservation.amount
        try:
            reservation.resize(amount)
        except NoRoom:
            assert (amount > before, reservation.amount) == (True, before)

    @precondition(lambda self: self.reservations)
    @rule(data=st.data(), flow=FLOWS)
    def move(self, data: st.DataObject, flow: bytes) -> None:
        try:
            data.draw(st.sampled_from(self.reservations)).move_to(flow)
        except NoRoom:
            assert self.account.held > 0

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.reservations)).release()

    @invariant()
    def sums_are_right(self) -> None:
        by_flow: Counter[bytes] = Counter()
        for reservation in self.reservations:
            by_flow[reservation.flow] += reservation.amount
        assert self.account.held == sum(by_flow.values())
        assert all(self.account.held_by(flow) == amount for flow, amount in by_flow.items())
        assert self.account.num_flows == len(+by_flow)

    @invariant()
    def no_limit_is_passed(self) -> None:
        assert self.account.held <= CAPACITY + RESERVE
        assert all(self.account.held_by(r.flow) <= SHARE * CAPACITY for r in self.reservations)

    def teardown(self) -> None:
        for reservation in self.reservations:
            reservation.release()
        assert (self.account.held, self.account.num_flows) == (0, 0)


TestAnyReservations = AnyReservations.TestCase
TestAnyReservations.settings = settings(max_examples=60, stateful_step_count=40)
