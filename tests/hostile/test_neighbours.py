"""Another user of a server is served beside every bad neighbour. How fast is measured by `make neighbours`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.neighbours import NEIGHBOURS, SERVER_FLAGS, attacked
from tests.hostile.target import Target
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

_SECONDS = 1.5


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with RunningServer(*SERVER_FLAGS) as server:
        yield Target.of(server.wait_ready())


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_bad_neighbour_costs_another_user_no_error(name: str, target: Target) -> None:
    outcome = attacked(target, NEIGHBOURS[name], _SECONDS, timeout_s=HANG_S)
    assert outcome.faults() == []
