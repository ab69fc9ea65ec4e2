"""What requests hold in a gateway is counted, and no caller can hold everything."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import orjson
import pytest
from bert_serving.protocol import Overloaded, PayloadTooLarge
from bert_serving.server.gateway.memory import GatewayMemory, RequestMemory, parsed_bytes
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20


def test_there_is_always_room_for_another_flow() -> None:
    memory = GatewayMemory(64 * MIB)
    for flow, most in (("a", 32), ("b", 16), ("c", 8)):
        for _ in range(most):
            memory.hold(flow, MIB)
        with pytest.raises(Overloaded) as caught:
            memory.hold(flow, MIB)
        assert caught.value.retry_after_ms == 1000


def test_what_is_released_can_be_held_again() -> None:
    memory = GatewayMemory(10 * MIB)
    first, second, third = (RequestMemory(memory, "a") for _ in range(3))
    first.grow(5 * MIB)
    with pytest.raises(Overloaded):
        second.grow(MIB)
    second.release()
    first.release()
    third.grow(5 * MIB)
    assert memory.held == 5 * MIB
    third.release()
    assert memory.held == 0


def test_a_small_request_is_never_refused() -> None:
    memory = GatewayMemory(MIB)
    memory.hold("a", MIB // 2)
    small = [RequestMemory(memory, "a") for _ in range(1000)]
    for request in small:
        request.grow(1000)
        request.grow(1000)
        assert not request.is_large
    assert memory.held == MIB // 2


def test_a_request_that_can_never_fit_is_not_told_to_come_back() -> None:
    with pytest.raises(PayloadTooLarge, match=r"more than 4 MiB in the gateway"):
        RequestMemory(GatewayMemory(8 * MIB), "a").grow(5 * MIB)


@pytest.mark.parametrize(("size", "is_same_thread"), [(1000, True), (MIB, False)])
def test_only_work_for_a_large_request_is_done_in_another_thread(size: int, is_same_thread: bool) -> None:
    request = RequestMemory(GatewayMemory(8 * MIB), "a")
    request.grow(size)
    found = asyncio.run(request.off_loop(threading.get_ident))
    assert (found == threading.get_ident()) is is_same_thread


def _size(value: Any) -> int:
    """Return the bytes of a parsed value, as Python counts them."""
    size = sys.getsizeof(value)
    if isinstance(value, list):
        return size + sum(map(_size, value))
    if isinstance(value, dict):
        return size + sum(map(_size, value.values()))
    return size


_JSON = st.recursive(
    st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=8),
    max_leaves=40,
)


@given(_JSON)
def test_the_estimate_is_at_least_what_the_values_take(value: object) -> None:
    raw = json.dumps([value] * 20, ensure_ascii=False, separators=(",", ":")).encode()
    # Four bytes for each byte of text: Python stores a text with one emoji so. 500: for the outermost list alone.
    assert _size(orjson.loads(raw)) <= parsed_bytes(raw) + 4 * len(raw) + 500
