"""Who has subscribed to what, connection by connection. Decides, does no I/O.

libzmq tells which connection a subscription came from. Of a connection that broke it tells only which
identities it had subscribed to. So all of them are remembered here, refused ones too: their end must not
be taken for the end of another connection's subscription to the same identity.
"""

from __future__ import annotations

import itertools
from collections import Counter

_MAX_IDENTITIES = 256  # of one connection: a client has one or two, a forwarder one for each client behind it
# The last guard for memory. Connections are bounded by file descriptors, so this bounds the whole.
_PLENTY = 50_000  # identities of all connections; beyond it,
_FEW = 2  # so many of one
_MAX_REFUSED = 100_000  # that are remembered


class Subscriptions:
    """Accepts a subscription, or refuses it where its connection has too many. One for each broker.

    A connection is any number that no other one has at the same time; None stands for one that is gone.
    """

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[int, bool]] = {}  # identity -> its connections, True where accepted
        self._num_accepted: Counter[int] = Counter()
        self._num_refused: Counter[int] = Counter()
        self._total_accepted = 0
        self._total_refused = 0
        self._gone = itertools.count(-1, -1)

    def __repr__(self) -> str:
        return f"<Subscriptions accepted={self._total_accepted} refused={self._total_refused}>"

    def has_refused(self, connection: int | None) -> bool:
        """Whether a subscription of this connection was refused."""
        return connection in self._num_refused

    def add(self, connection: int | None, identity: bytes) -> bool:
        """Note a subscription; return whether it is accepted. One that is repeated is not, a second time."""
        if connection is None:
            self._refuse(next(self._gone), identity)
            return False
        if connection in self._holders.get(identity, ()):
            return False  # libzmq will tell of its end only once
        limit = _MAX_IDENTITIES if self._total_accepted < _PLENTY else _FEW
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
            # One of these. A refused one first: to take it for another would make that one deaf.
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
