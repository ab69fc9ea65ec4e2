"""Workers and gateways may be killed or stopped at any moment. No request is lost, wrong or answered twice."""

from __future__ import annotations

import pytest

from tests.hostile.chaos import SERVER_FLAGS, kill_at_random, stop_at_random
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S


@pytest.mark.parametrize("harm", ["kill", "stop"])
def test_no_request_is_lost_while_processes_are_harmed(harm: str) -> None:
    with RunningServer(*SERVER_FLAGS) as server:
        server.wait_ready()
        outcome = kill_at_random(server, 10, HANG_S) if harm == "kill" else stop_at_random(server, 8, HANG_S, 2)
        assert outcome.faults() == []
        assert outcome.num_answered > 0
        assert min(outcome.num_harmed.values()) > 0
