"""The judges of tests/hostile notice what they should notice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bert_serving.protocol import Command

from tests.hostile.checked_clients import Pool
from tests.hostile.garbage_messages import garbage_messages
from tests.hostile.neighbours import MAX_GROWTH_MB, Outcome
from tests.hostile.scripts import delays
from tests.hostile.series import Trend
from tests.hostile.victim import Calls

POOL = Pool(["a", "b", "c"], np.eye(3, dtype=np.float32))


def test_the_vectors_of_the_texts_have_no_fault() -> None:
    assert POOL.fault([2, 0], 7 * POOL.vectors[[2, 0]]) is None


@pytest.mark.parametrize("rows", [[0, 2], [2], [2, 0, 1], [2, 2]])
def test_vectors_of_other_texts_are_wrong(rows: list[int]) -> None:
    assert str(POOL.fault([2, 0], POOL.vectors[rows])).startswith("wrong")


def test_a_neighbour_is_at_fault_for_errors_silence_losses_and_growth() -> None:
    harmless = Outcome([Calls("HTTP", [0.1])], growth_mb=MAX_GROWTH_MB, lost=[])
    assert harmless.faults() == []
    assert Outcome([Calls("HTTP", [0.1], ["Overloaded"])], 0, []).faults() == ["HTTP: Overloaded"]
    assert Outcome([Calls("HTTP")], 0, []).faults() == ["HTTP: no call got an answer"]
    assert Outcome(harmless.calls, 0, ["worker 0 was lost"]).faults() == ["worker 0 was lost"]
    too_much = MAX_GROWTH_MB + 1
    assert Outcome(harmless.calls, too_much, []).faults() == [f"the server grew by {too_much} MiB"]


def test_the_99th_of_a_hundred_calls_decides_about_delays() -> None:
    assert delays([Calls("HTTP", [0.1] * 100)], 1000) == []
    assert delays([Calls("HTTP", [0.1] * 98 + [2, 2])], 1000) == ["HTTP: p99 2000 ms, the limit is 1000"]
    assert delays([Calls("HTTP")], 1000) == ["HTTP: p99 inf ms, the limit is 1000"]


@pytest.mark.parametrize(
    ("name", "minutes", "is_flat"),
    [
        ("server memory MiB", [60, 61, 60, 62, 60, 61], True),
        ("server memory MiB", [60, 65, 70, 75, 80, 85], False),
        ("server memory MiB", [85, 80, 75, 70, 65, 60], True),
        ("worker 0 descriptors", [20, 21, 20, 21, 20, 20], True),
        ("worker 0 descriptors", [20, 21, 22, 23, 24, 25], False),
        ("HTTP p99 ms", [300, 100, 310, 120, 290, 300], True),
        ("HTTP p99 ms", [100, 200, 300, 400, 500, 600], False),
    ],
)
def test_a_line_that_rises_too_much_is_not_flat(name: str, minutes: list[float], is_flat: bool) -> None:
    assert Trend.of(name, minutes).is_flat == is_flat


def test_garbage_has_every_number_of_frames_and_never_ends_the_server() -> None:
    messages = list(itertools.islice(garbage_messages(seed=0), 5000))
    assert {len(message) for message in messages} == {1, 2, 3, 4, 5, 6}
    assert all(Command.TERMINATION.value not in message for message in messages)
