"""An account of a limited resource, shared by flows: bytes of memory, or texts that wait. Does no I/O.

Nothing is held without a reservation. A reservation is made before the resource is used, and released when the
resource is free again; so the limits hold at every moment, and nothing has to be dropped later.

Dynamic thresholds (Choudhury and Hahne 1998): a flow may hold at most a share of what the other flows leave free.
With a share of 0.5, a flow that is alone may hold half of the account, two busy flows a third each, three a
quarter. So there is always room for one more flow. But this room shrinks with the number of busy flows. Therefore
a reserve is kept, from which a flow that holds little may take a little more.
"""

from __future__ import annotations

from collections import Counter


class NoRoom(Exception):
    """There is no room for a reservation.

    limit: how much the flow may hold at the moment. missing: how much must be released before there is room.
    is_possible: whether there would be room if nothing else was held; if not, waiting does not help.
    """

    def __init__(self, *, limit: int, missing: int, is_possible: bool) -> None:
        super().__init__(f"the flow may hold {limit} now, which is {missing} too few")
        self.limit = limit
        self.missing = missing
        self.is_possible = is_possible


class Account:
    """Knows how much each flow holds, and how much it may hold. Every method takes constant time.

    held_in: how much is held in each group of reservations. capacity: limit for all flows together, without the
    reserve. share: the largest part of what the other flows
    leave free that one flow may hold, 0 to 1. reserve: extra room for flows that hold at most `small`.
    """

    def __init__(self, capacity: int, *, share: float, reserve: int = 0, small: int = 0) -> None:
        self._capacity = capacity
        self._share = share
        self._reserve = reserve
        self._small = small
        self._held_by: dict[bytes, int] = {}  # a flow that holds nothing is removed
        self.held = 0
        self.held_in: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Account held={self.held} of {self._capacity} flows={self.num_flows}>"

    @property
    def num_flows(self) -> int:
        """The number of flows that hold something."""
        return len(self._held_by)

    @property
    def capacity(self) -> int:
        """The limit for all flows together, with the reserve."""
        return self._capacity + self._reserve

    @property
    def largest(self) -> int:
        """How much one flow may hold if no other flow holds anything."""
        return int(self._capacity * self._share)

    def held_by(self, flow: bytes) -> int:
        """Return how much a flow holds."""
        return self._held_by.get(flow, 0)

    def reserve(self, flow: bytes, amount: int, *, share: float | None = None, group: str = "") -> Reservation:
        """Return a reservation for a flow. Raises NoRoom. share: the share of this flow, if it is smaller.

        group: under which the reservation is counted in `held_in`.
        """
        share = self._share if share is None else min(share, self._share)
        if amount > 0:
            self._check(flow, amount, share, total=amount)
        self._add(flow, group, amount)
        return Reservation(self, flow, group, amount, share)

    def _check(self, flow: bytes, more: int, share: float, *, total: int) -> None:
        """Raise NoRoom if the flow may not hold so much more. total: what the reservation will have then."""
        before = self._held_by.get(flow, 0)
        if before + more <= self._small:
            limit = self._capacity + self._reserve - (self.held - before)
        else:
            limit = int(share * (self._capacity - (self.held - before)))
        if before + more > limit:
            largest = min(max(self._small, int(share * self._capacity)), self._capacity + self._reserve)
            raise NoRoom(limit=max(0, limit), missing=before + more - limit, is_possible=total <= largest)

    def _add(self, flow: bytes, group: str, amount: int) -> None:
        self.held += amount
        self.held_in[group] += amount
        after = self._held_by.get(flow, 0) + amount
        if after:
            self._held_by[flow] = after
        else:
            self._held_by.pop(flow, None)


class Reservation:
    """A part of an account that a flow holds. Whoever holds what it stands for releases it.

    amount: how much is reserved.
    """

    __slots__ = ("_account", "_group", "_share", "amount", "flow")

    def __init__(self, account: Account, flow: bytes, group: str, amount: int, share: float) -> None:
        self._account = account
        self._group = group
        self._share = share
        self.flow = flow
        self.amount = amount

    def __repr__(self) -> str:
        return f"<Reservation {self.amount} flow={self.flow!r}>"

    def resize(self, amount: int) -> None:
        """Change the amount. A larger one raises NoRoom if it does not fit.

        A smaller one is always possible, even while the flow holds more than it may.
        """
        more = amount - self.amount
        if more == 0:
            return
        if more > 0:
            self._account._check(self.flow, more, self._share, total=amount)
        self._account._add(self.flow, self._group, more)
        self.amount = amount

    def move_to(self, flow: bytes, *, share: float | None = None) -> None:
        """Let another flow hold the reservation. Raises NoRoom; then nothing has changed."""
        if flow == self.flow:
            return
        account, amount = self._account, self.amount
        account._add(self.flow, self._group, -amount)
        try:
            moved = account.reserve(flow, amount, share=share, group=self._group)
        except NoRoom:
            account._add(self.flow, self._group, amount)
            raise
        self.flow, self._share = flow, moved._share

    def release(self) -> None:
        """Give everything back. A second call has no effect."""
        self.resize(0)
