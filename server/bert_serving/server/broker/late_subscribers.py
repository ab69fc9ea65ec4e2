"""Which client's first question was answered before the client could hear it. Decides, does no I/O.

A client asks over one connection and subscribes over another, and either may come first. The outbox holds
an answer until somebody has subscribed to its identity. Where clients share an identity, that somebody may be
a twin who was there before, and the newcomer would wait for ever. So a first question and a subscription are
matched, whichever comes first: a question whose subscription comes second is to be answered again.

Nothing tells whose subscription it is, so that one which its owner's question does not follow at once (a mere
listener's) must not stand for a later newcomer's: it counts for a second, a question for a minute.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

_QUESTION_S = 60.0  # the two come within milliseconds, but for a line or a machine in trouble
_SUBSCRIPTION_S = 1.0
_MAX_IDENTITIES = 10_000  # anybody can make them up, so beyond it the oldest are forgotten
_MAX_OF_ONE = 16  # newcomers with the same identity at once


class LateSubscribers(Generic[T]):
    """Remembers first questions and subscriptions that lack each other, for a while.

    T: what is known of a question. `now` is a monotonic time in seconds.
    """

    def __init__(self) -> None:
        self._questions: _Recent[T] = _Recent(_QUESTION_S)
        self._subscriptions: _Recent[None] = _Recent(_SUBSCRIPTION_S)

    def __repr__(self) -> str:
        return f"<LateSubscribers questions={len(self._questions)} subscriptions={len(self._subscriptions)}>"

    def ask(self, identity: bytes, question: T, now: float) -> None:
        """Note the first question of a client."""
        if not self._subscriptions.take(identity, now):
            self._questions.add(identity, question, now)

    def subscribe(self, identity: bytes, now: float) -> list[T]:
        """Note a subscription; return the question that came before it, or nothing."""
        missed = self._questions.take(identity, now)
        if not missed:
            self._subscriptions.add(identity, None, now)
        return missed


class _Recent(Generic[T]):
    """Items of each identity, oldest first, for so many seconds. Bounded."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._items: dict[bytes, deque[tuple[float, T]]] = {}  # in the order in which they were last added to

    def __len__(self) -> int:
        return len(self._items)

    def add(self, identity: bytes, item: T, now: float) -> None:
        """Add an item, and forget the identities that have only old ones or are too many."""
        items = self._items.pop(identity, None) or deque(maxlen=_MAX_OF_ONE)
        items.append((now, item))
        self._items[identity] = items
        while len(self._items) > _MAX_IDENTITIES or self._is_old(next(iter(self._items)), now):
            del self._items[next(iter(self._items))]

    def take(self, identity: bytes, now: float) -> list[T]:
        """Take out the oldest item of an identity that is recent; return it, or nothing."""
        items = self._items.get(identity, deque())
        while items and now - items[0][0] > self._within_s:
            items.popleft()
        taken = [items.popleft()[1]] if items else []
        if not items:
            self._items.pop(identity, None)
        return taken

    def _is_old(self, identity: bytes, now: float) -> bool:
        return now - self._items[identity][-1][0] > self._within_s
