"""Stores which connection has subscribed to which identities. Does no I/O.

libzmq reports the connection of every subscription. But when a connection breaks, libzmq reports only the
identities that the connection had subscribed to, not the connection itself. Therefore all subscriptions are stored
here, including the refused ones: when a refused subscription ends, an accepted subscription of another connection
to the same identity must not be removed.

libzmq stores every subscription until its connection ends, also a refused one, and cannot be told to close a
connection. So a client that may connect can make libzmq use memory. Only the length of a subscription is limited
(see ports.py).
"""

from __future__ import annotations

import itertools
from collections import Counter

_MAX_IDENTITIES = 256  # per connection: a client has one or two, a proxy has one for each of its clients
# The next two constants limit the memory for all connections together. File descriptors limit the number of
# connections.
_MANY = 50_000  # accepted subscriptions of all connections; above this number, the next constant is the limit
_MAX_IDENTITIES_IF_MANY = 2  # per connection
_MAX_REFUSED = 100_000  # at most this many refused subscriptions are stored


class Subscriptions:
    """Accepts or refuses subscriptions: each connection may have only a limited number of them.

    The methods take a connection as a number that no other open connection has, or as None if the connection is
    already closed.
    """

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[int, bool]] = {}  # identity -> {connection: True if accepted}
        self._num_accepted: Counter[int] = Counter()
        self._num_refused: Counter[int] = Counter()
        self._total_accepted = 0
        self._total_refused = 0
        self._closed = itertools.count(-1, -1)

    def __repr__(self) -> str:
        return f"<Subscriptions accepted={self._total_accepted} refused={self._total_refused}>"

    def has_refused(self, connection: int | None) -> bool:
        """Whether a subscription of this connection was refused."""
        return connection in self._num_refused

    def add(self, connection: int | None, identity: bytes) -> bool:
        """Note a subscription; return whether it is accepted. A repeated subscription is not accepted again."""
        if connection is None:
            self._refuse(next(self._closed), identity)
            return False
        if connection in self._holders.get(identity, ()):
            return False  # libzmq reports the end of a repeated subscription only once
        limit = _MAX_IDENTITIES if self._total_accepted < _MANY else _MAX_IDENTITIES_IF_MANY
        if self._num_accepted[connection] >= limit:
            self._refuse(connection, identity)
            return False
        self._holders.setdefault(identity, {})[connection] = True
        self._num_accepted[connection] += 1
        self._total_accepted += 1
        return True

    def remove(self, connection: int | None, identity: bytes) -> bool:
        """Note the end of a subscription; return whether it had been accepted."""
        holders = self._holders.get(identity, {})
        if connection is None:
            # The connection is one of the holders, but it is not known which one. Prefer a refused holder: if an
            # accepted holder were removed by mistake, its client would get no more replies.
            connection = min(holders, key=holders.__getitem__, default=None)
        if connection is None or connection not in holders:
            return False
        was_accepted = holders.pop(connection)
        if not holders:
            del self._holders[identity]
        if was_accepted:
            self._total_accepted -= 1
            _count_down(self._num_accepted, connection)
        else:
            self._total_refused -= 1
            _count_down(self._num_refused, connection)
        return was_accepted

    def _refuse(self, connection: int, identity: bytes) -> None:
        if self._total_refused >= _MAX_REFUSED:
            return
        self._holders.setdefault(identity, {})[connection] = False
        self._num_refused[connection] += 1
        self._total_refused += 1


def _count_down(counter: Counter[int], key: int) -> None:
    counter[key] -= 1
    if counter[key] == 0:
        del counter[key]
