"""Another user of a server is served beside every bad neighbour. How fast is measured by `make neighbours`."""

from __future__ import annotations

import pytest

from tests.hostile.neighbours import NEIGHBOURS, attacked
from tests.hostile.target import Target
from tests.support.waiting import HANG_S

_SECONDS = 1.0


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_bad_neighbour_costs_another_user_no_error(name: str, target: Target) -> None:
    outcome = attacked(target, NEIGHBOURS[name], _SECONDS, timeout_s=HANG_S)
    assert outcome.faults() == []
