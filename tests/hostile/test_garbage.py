"""Garbage on all ports costs its sender's time, but neither memory nor other users' requests."""

from __future__ import annotations

from tests.hostile.garbage import pelted
from tests.hostile.target import Target
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S


def test_garbage_neither_grows_the_server_nor_disturbs_a_client() -> None:
    with RunningServer() as server:
        outcome = pelted(
            Target.of(server.wait_ready()), num_messages=20_000, num_connections=500, timeout_s=HANG_S
        )
        assert outcome.faults() == []
