"""Checks the API key of each request, and limits the texts per minute of each key.

The time of a limit is monotonic, and each gateway process counts for itself: with N processes, each of them allows
one N-th of a key's texts per minute.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from bert_serving.protocol import Overloaded, Unauthorized, Unavailable
from fastapi import Request

from ..keys import ApiKey, KeySource, hash_of_sent

#: Under this name, the ASGI scope of a request contains its ApiKey, if the server requires keys.
API_KEY = "bert_serving.api_key"

_KEY_HEADERS = ("x-api-key", "api-key")  # instead of Authorization; the second one is Azure's

# The key of the request that the current task handles. The tasks that this task creates have it too.
_current_key: ContextVar[ApiKey | None] = ContextVar("api_key", default=None)


class Keyring:
    """The keys that a gateway process accepts. If there are none, no key is required."""

    def __init__(self, source: KeySource | None = None) -> None:
        self._source = source or KeySource()
        self._buckets: dict[ApiKey, TokenBucket] = {}
        self._make_buckets()

    def __repr__(self) -> str:
        return f"<Keyring {' '.join(self.names) or '-'}>"

    @property
    def names(self) -> list[str]:
        """The names of the keys."""
        return [key.name for key in self._keys]

    @property
    def _keys(self) -> tuple[ApiKey, ...]:
        return self._source.keys

    def reload(self) -> None:
        """Read the key file again. If the file has an error, log it and keep the keys."""
        if self._source.reload():
            self._make_buckets()

    def check(self, request: Request) -> None:
        """Note in the request's scope, and for `charge`, which key it has. Raises Unauthorized if it has none."""
        if not self._keys:
            return
        key = self._sent_in(request.headers)
        if key is None:
            raise Unauthorized("this server requires an API key: send Authorization: Bearer <key>")
        request.scope[API_KEY] = key
        _current_key.set(key)

    @contextmanager
    def charge(self, num_texts: int) -> Iterator[None]:
        """Count texts of the request that the current task handles.

        If this context ends in Overloaded or Unavailable, the texts do not count: the caller is asked to send them
        again. After a timeout they count, because they may have been computed.

        Raises Overloaded, with the time until a retry, if the key of the request has sent too many texts.
        """
        key = _current_key.get()
        bucket = None if key is None else self._buckets.get(key)
        if key is None or bucket is None:
            yield
            return
        wait_s = bucket.take(num_texts, time.monotonic())
        if wait_s > 0:
            num_gateways = self._source.num_gateways
            parts = f"; each of the {num_gateways} HTTP processes allows an equal part" if num_gateways > 1 else ""
            raise Overloaded(
                f"the API key {key.name!r} may send {key.texts_per_minute} texts per minute{parts}",
                retry_after_ms=math.ceil(wait_s * 1000),
            )
        try:
            yield
        except (Overloaded, Unavailable):
            bucket.give_back(num_texts)
            raise

    def _sent_in(self, headers: Mapping[str, str]) -> ApiKey | None:
        authorization = headers.get("authorization", "")
        scheme, _, rest = authorization.partition(" ")
        bearer = rest.strip() if scheme.lower() == "bearer" else authorization
        others = (headers.get(name, "") for name in _KEY_HEADERS)
        sent = [hash_of_sent(given) for given in (bearer, *others)]
        # Compare with every key, and in constant time: the time taken must not reveal anything about a key.
        found = [key for key in self._keys for each in sent if hmac.compare_digest(each, key.hashed)]
        return found[0] if found else None

    def _make_buckets(self) -> None:
        """Make the bucket of each key that has a limit. Keys that have not changed keep their buckets."""
        self._buckets = {
            key: self._buckets.get(key) or TokenBucket(key.texts_per_minute / self._source.num_gateways)
            for key in self._keys
            if key.texts_per_minute is not None
        }


class TokenBucket:
    """Allows a number of texts per minute, and all texts of one minute at once.

    A request with more texts than that is allowed when the bucket is full. The bucket is then in debt, and refuses
    further requests until the debt is paid. So every request is allowed at some time, and the rate is kept.
    """

    def __init__(self, per_minute: float) -> None:
        self._capacity = per_minute
        self._per_s = per_minute / 60
        self._level = per_minute
        self._at: float | None = None

    def take(self, num_texts: int, now: float) -> float:
        """Take texts and return 0, or return the seconds until they can be taken. now: monotonic seconds."""
        if self._at is not None:
            self._level = min(self._capacity, self._level + (now - self._at) * self._per_s)
        self._at = now
        missing = min(num_texts, self._capacity) - self._level
        if missing > 0:
            return missing / self._per_s
        self._level -= num_texts
        return 0.0

    def give_back(self, num_texts: int) -> None:
        """Undo a successful `take`."""
        self._level = min(self._capacity, self._level + num_texts)
