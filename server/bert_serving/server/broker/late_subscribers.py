"""Finds clients that subscribed too late to receive the reply to their first request. Does no I/O.

A client sends requests over one connection and subscribes over another, and the request or the subscription may
arrive first. The outbox holds a reply until a client has subscribed to the identity of the request. But several
clients may share an identity. Then the outbox publishes the reply as soon as any of them has subscribed. If the
sender of the request has not subscribed yet, it never gets the reply. Therefore each client's first request is
matched with a subscription to its identity. If the subscription arrives after the request, `subscribe` returns the
request, and the caller can reply to the request again.

A subscription does not name its client, and some clients subscribe but send nothing. The subscription of such a
client must not be matched with the request of a later client. Therefore a subscription waits only one second for
its request. A request waits one minute for its subscription.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

_REQUEST_S = 60.0  # usually both arrive within milliseconds, but a network or a machine may be very slow
_SUBSCRIPTION_S = 1.0
_MAX_IDENTITIES = 10_000  # clients can invent any number of identities; above the limit, the oldest are forgotten
_MAX_PER_IDENTITY = 16


class LateSubscribers(Generic[T]):
    """Remembers first requests and subscriptions that are not matched yet.

    T: what is stored for a request. `now` is a monotonic time in seconds.
    """

    def __init__(self) -> None:
        self._requests: _Recent[T] = _Recent(_REQUEST_S)
        self._subscriptions: _Recent[None] = _Recent(_SUBSCRIPTION_S)

    def __repr__(self) -> str:
        return f"<LateSubscribers requests={len(self._requests)} subscriptions={len(self._subscriptions)}>"

    def note_request(self, identity: bytes, request: T, now: float) -> None:
        """Note the first request of a client."""
        if not self._subscriptions.take(identity, now):
            self._requests.add(identity, request, now)

    def subscribe(self, identity: bytes, now: float) -> list[T]:
        """Note a subscription; return a list with the request that arrived before it, or an empty list."""
        missed = self._requests.take(identity, now)
        if not missed:
            self._subscriptions.add(identity, None, now)
        return missed


class _Recent(Generic[T]):
    """Items by identity, oldest first. Each item is kept for `within_s` seconds. Their total number is limited."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        # Ordered by the time of the newest item. An ordinary dict takes longer and longer to find its first item
        # when items are removed from its front. Lists, because an empty deque already takes 700 bytes.
        self._items: OrderedDict[bytes, list[tuple[float, T]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, identity: bytes, item: T, now: float) -> None:
        """Add an item; forget identities that have only old items, and the oldest identities beyond the limit."""
        items = self._items.pop(identity, [])
        self._items[identity] = [*items[1 - _MAX_PER_IDENTITY :], (now, item)]
        while len(self._items) > _MAX_IDENTITIES or self._is_old(next(iter(self._items)), now):
            self._items.popitem(last=False)

    def take(self, identity: bytes, now: float) -> list[T]:
        """Remove the oldest item that is recent enough; return a list with this item, or an empty list."""
        items = [item for item in self._items.get(identity, ()) if now - item[0] <= self._within_s]
        if len(items) > 1:
            self._items[identity] = items[1:]  # at the same place in the order
        else:
            self._items.pop(identity, None)
        return [item for _, item in items[:1]]

    def _is_old(self, identity: bytes, now: float) -> bool:
        return now - self._items[identity][-1][0] > self._within_s
