"""The memory that requests take in a gateway, for their bodies and their replies: one account with a limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bert_serving.protocol import Overloaded, PayloadTooLarge

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SMALL_BYTES = 128 << 10
_RETRY_AFTER_MS = 1000

# What values take in CPython in addition to their bytes in JSON. Lists and objects take most for their length: the
# two bytes `{}` become 64 bytes, and a dict with one short key has 184.
_BYTES_PER_CONTAINER = 240
_BYTES_PER_VALUE = 64


class GatewayMemory:
    """The bytes that each flow holds in a gateway.

    A flow may hold as many bytes as are free. So one flow alone can take half of the memory, and there is always
    room for another one (dynamic thresholds: Choudhury & Hahne 1998, with alpha = 1).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._by_flow: Counter[str] = Counter()

    def hold(self, flow: str, num_bytes: int) -> None:
        """Add bytes to those that a flow holds. Raises Overloaded if there is no room for them now."""
        if self._by_flow[flow] + num_bytes > self.capacity - self.held:
            self._forget_empty(flow)
            raise Overloaded("this gateway holds too many large requests", retry_after_ms=_RETRY_AFTER_MS)
        self._by_flow[flow] += num_bytes
        self.held += num_bytes

    def release(self, flow: str, num_bytes: int) -> None:
        """Give back bytes that `hold` has added."""
        self._by_flow[flow] -= num_bytes
        self.held -= num_bytes
        self._forget_empty(flow)

    def _forget_empty(self, flow: str) -> None:
        if not self._by_flow[flow]:
            del self._by_flow[flow]


class RequestMemory:
    """The bytes of one request. A small request is not counted: the number of connections bounds their number."""

    def __init__(self, memory: GatewayMemory, flow: str) -> None:
        self._memory = memory
        self._flow = flow
        self._needed = 0
        self._held = 0

    def __enter__(self) -> RequestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def is_large(self) -> bool:
        """Whether the request is so large that work on it would delay other requests."""
        return self._needed > _SMALL_BYTES

    def grow(self, num_bytes: int) -> None:
        """Hold more bytes. Raises Overloaded, or PayloadTooLarge if the request can never get so many."""
        needed = self._needed + num_bytes
        most = self._memory.capacity // 2
        if needed > _SMALL_BYTES:
            if needed > most:
                raise PayloadTooLarge(
                    f"this request needs more than {most >> 20} MiB in the gateway: send several requests instead"
                )
            self._memory.hold(self._flow, needed - self._held)
            self._held = needed
        self._needed = needed

    async def off_loop(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function: in a thread if the request is large."""
        if self.is_large:
            return await asyncio.to_thread(function, *args, **kwargs)
        return function(*args, **kwargs)

    def release(self) -> None:
        """Give everything back."""
        self._memory.release(self._flow, self._held)
        self._needed = self._held = 0


def parsed_bytes(piece: bytes) -> int:
    """Return an upper limit for the bytes that a piece of JSON takes when it is parsed, in addition to its own."""
    containers = piece.count(b"[") + piece.count(b"{")
    return containers * _BYTES_PER_CONTAINER + piece.count(b",") * _BYTES_PER_VALUE
