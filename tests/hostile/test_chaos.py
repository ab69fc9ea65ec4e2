"""Workers and gateways may be killed or stopped at any moment. No request is lost, wrong or answered twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.hostile.chaos import SERVER_FLAGS, Outcome, crowded, harmed, limit_files, stopped
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

FEW_FILES = 256


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(*SERVER_FLAGS) as running:
        yield running.wait_ready()


def test_no_request_is_lost_while_processes_are_killed_and_workers_are_replaced(server: RunningServer) -> None:
    _check(harmed(server, 10, HANG_S, in_the_middle=lambda: server.signal(signal.SIGHUP)))
    assert "replacing the workers one at a time" in server.log


def test_no_request_is_lost_and_no_process_replaced_while_processes_are_stopped(server: RunningServer) -> None:
    _check(stopped(server, 6, HANG_S, group_s=2))


def test_a_crowd_of_clients_cannot_take_the_descriptors_of_workers_and_gateways() -> None:
    with RunningServer(*SERVER_FLAGS) as server:  # a server of its own: it is started with few descriptors
        limit_files(server, FEW_FILES)
        server.wait_ready()
        _check(crowded(server, 6, HANG_S, FEW_FILES))
        assert "new clients must wait" in server.log


def _check(outcome: Outcome) -> None:
    assert outcome.faults() == []
    assert all(tally.num_answered > 0 for tally in outcome.tallies)
    assert min(outcome.num_harmed.values()) > 0
