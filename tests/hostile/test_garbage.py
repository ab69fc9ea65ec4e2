"""Garbage on all ports costs its sender's time, but neither memory nor other users' requests."""

from __future__ import annotations

from tests.hostile.garbage import pelted
from tests.hostile.target import Target
from tests.support.waiting import HANG_S


# This test must run before the attacks of test_neighbours: memory that they used and gave back would hide growth.
def test_garbage_neither_grows_the_server_nor_disturbs_a_client(target: Target) -> None:
    outcome = pelted(target, num_messages=20_000, num_connections=500, timeout_s=HANG_S)
    assert outcome.faults() == []
