"""Another user of a server is served beside bad neighbours. How fast is measured by `make neighbours`."""

from __future__ import annotations

from itertools import zip_longest

import pytest

from tests.hostile import http_neighbours, zeromq_neighbours
from tests.hostile.neighbours import Attack, attacked
from tests.hostile.target import Target
from tests.support.waiting import HANG_S

_SECONDS = 1.0

#: One neighbour on ZeroMQ and one on HTTP attack at the same time, which takes half as long.
_PAIRS = [
    [attack for attack in pair if attack is not None]
    for pair in zip_longest(zeromq_neighbours.ATTACKS, http_neighbours.ATTACKS)
]


def _name(pair: list[Attack]) -> str:
    return "+".join(attack.__name__ for attack in pair)


@pytest.mark.parametrize("pair", _PAIRS, ids=_name)
def test_bad_neighbours_cost_another_user_no_error(pair: list[Attack], target: Target) -> None:
    outcome = attacked(target, pair, _SECONDS, timeout_s=HANG_S)
    assert outcome.faults() == []
