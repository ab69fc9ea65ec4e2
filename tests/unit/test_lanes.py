"""Threads share the micro-batches of a worker: small ones run side by side, a large one alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from bert_serving.protocol.workers import Changed, Failed, ModelFacts, PartResult, Result
from bert_serving.server.worker import batch_loop, computation
from bert_serving.server.worker.batch_loop import BatchLoop
from bert_serving.server.worker.compiled import operators
from bert_serving.server.worker.computation import TokenizedBatch
from bert_serving.server.worker.lanes import Compiled, Work
from bert_serving.server.worker.micro_batches import MicroBatch

from tests.support.model_facts import model_facts
from tests.support.waiting import HANG_S

_NUM_LANES = 3


class FakeMicroBatch(MicroBatch):
    """A micro-batch that calls a function."""

    def __init__(self, compute: Callable[[], object], *, is_lane_sized: bool = True) -> None:
        self.num_tokens, self.is_lane_sized, self.is_computed = 100, is_lane_sized, False
        self._compute = compute

    def compute(self) -> None:
        self._compute()
        self.is_computed = True


class FakeEncoder:
    """An encoder whose batches consist of fake micro-batches, in stages."""

    num_lanes = _NUM_LANES
    num_padding = 0

    def __init__(self) -> None:
        self.stages_of: dict[int, Sequence[list[FakeMicroBatch]]] = {}


def stages(
    encoder: FakeEncoder, parts: Sequence[int], *_: object, **__: object
) -> Generator[list[FakeMicroBatch], None, list[PartResult]]:
    """Take the place of part_results. parts: in place of the texts, the number of the batch."""
    yield from encoder.stages_of[parts[0]]
    return []


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    monkeypatch.setattr(computation, "part_results", stages)
    monkeypatch.setattr(operators, "one_thread", nullcontext)
    monkeypatch.setattr(batch_loop, "_canary", lambda encoder: [])
    return FakeEncoder()


class Running:
    """A loop that runs in a thread. said: what it has sent."""

    def __init__(self, encoder: FakeEncoder, batches: Sequence[Sequence[list[FakeMicroBatch]]]) -> None:
        self.said: list[Result | Failed | Changed] = []
        self.work = Work()
        self._left = threading.Semaphore(0)
        fake: Any = encoder
        self._loop = BatchLoop(
            fake, self.work, dtype=np.dtype(np.float32), max_batch_tokens=1000, send=self._send,
            on_forward=self._count,
        )  # fmt: skip
        self.num_forwards = 0
        self._thread = threading.Thread(target=self._loop.run, daemon=True)
        self._thread.start()
        encoder.stages_of.update(enumerate(batches))
        for number in range(len(batches)):
            parts: Any = [number]
            self.work.put(TokenizedBatch(number, parts, 0.0))
        self._num_batches = len(batches)

    def _send(self, message: Result | Failed | Changed) -> None:
        self.said.append(message)
        if not isinstance(message, Changed):
            self._left.release()

    def _count(self) -> None:
        self.num_forwards += 1

    def finish(self) -> None:
        """Wait until all batches are computed, then until all threads have ended."""
        for _ in range(self._num_batches):
            assert self._left.acquire(timeout=HANG_S)
        self.work.put(None)
        self.wait_ended()

    def wait_ended(self) -> None:
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]

    @property
    def results(self) -> list[int]:
        return sorted(message.batch_id for message in self.said if isinstance(message, Result))


def test_small_micro_batches_run_at_the_same_time(encoder: FakeEncoder) -> None:
    meeting = threading.Barrier(_NUM_LANES, timeout=HANG_S)
    names = set()

    def compute() -> None:
        names.add(threading.current_thread().name)
        meeting.wait()

    running = Running(encoder, [[[FakeMicroBatch(compute) for _ in range(2 * _NUM_LANES)]]])
    running.finish()
    assert running.results == [0]
    assert running.num_forwards == 2 * _NUM_LANES
    assert len(names) == _NUM_LANES
    (result,) = running.said
    assert isinstance(result, Result)
    assert 0 < result.busy_share <= 1
    assert result.busy_ms <= result.compute_ms


def test_small_batches_fill_the_lanes_together(encoder: FakeEncoder) -> None:
    meeting = threading.Barrier(_NUM_LANES, timeout=HANG_S)
    gate = threading.Event()
    first = [[FakeMicroBatch(lambda: gate.wait(HANG_S), is_lane_sized=False)]]
    running = Running(encoder, [first, *([[FakeMicroBatch(meeting.wait)]] for _ in range(_NUM_LANES))])
    gate.set()
    running.finish()
    assert running.results == list(range(_NUM_LANES + 1))


def test_too_few_for_all_lanes_run_in_the_main_thread(encoder: FakeEncoder) -> None:
    names = []
    done = threading.Semaphore(0)

    def compute() -> None:
        names.append(threading.current_thread().name)
        done.release()

    running = Running(encoder, [[[FakeMicroBatch(compute) for _ in range(_NUM_LANES - 1)]]])
    running.finish()
    assert len(set(names)) == 1
    assert not names[0].startswith("lane-")


@pytest.mark.parametrize("seed", range(5))
def test_a_large_micro_batch_runs_alone_and_every_batch_ends_once(encoder: FakeEncoder, seed: int) -> None:
    rng = random.Random(seed)
    lock, now_running, together = threading.Lock(), 0, []

    def micro_batch() -> FakeMicroBatch:
        is_small, fails = rng.random() < 0.7, rng.random() < 0.02

        def compute() -> None:
            nonlocal now_running
            with lock:
                now_running += 1
                together.append((is_small, now_running))
            threading.Event().wait(0.0005)  # so that others may begin
            with lock:
                together.append((is_small, now_running))
                now_running -= 1
            if fails:
                raise ValueError("cannot compute this")

        return FakeMicroBatch(compute, is_lane_sized=is_small)

    batches = [
        [[micro_batch() for _ in range(rng.randrange(8))] for _ in range(rng.randrange(3))] for _ in range(60)
    ]
    running = Running(encoder, batches)
    running.finish()
    failed = [message.batch_id for message in running.said if isinstance(message, Failed)]
    assert sorted([*running.results, *failed]) == list(range(len(batches)))
    assert len(running.results) > len(failed) > 0
    assert all(count == 1 for is_small, count in together if not is_small)
    assert max(count for _, count in together) == _NUM_LANES


def test_a_batch_in_one_lane_uses_a_part_of_the_threads(encoder: FakeEncoder) -> None:
    gate, meeting = threading.Event(), threading.Barrier(_NUM_LANES, timeout=HANG_S)

    def large() -> None:
        gate.wait(HANG_S)
        threading.Event().wait(0.2)

    def slow() -> None:
        meeting.wait()
        threading.Event().wait(0.2)

    first = [[FakeMicroBatch(large, is_lane_sized=False)]]
    running = Running(encoder, [first, *([[FakeMicroBatch(slow)]] for _ in range(_NUM_LANES))])
    gate.set()
    running.finish()
    alone, *others = sorted((each for each in running.said if isinstance(each, Result)), key=lambda r: r.batch_id)
    assert alone.busy_share > 0.5
    for each in others:
        assert each.compute_ms >= 200
        assert each.busy_share < 0.5


def test_new_passes_are_measured_while_no_lane_computes(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    num_running = 0
    seen: list[int] = []

    def compute() -> None:
        nonlocal num_running
        with lock:
            num_running += 1
        threading.Event().wait(0.001)
        with lock:
            num_running -= 1

    def warm_up(*_args: object, **_options: object) -> ModelFacts:
        for _ in range(20):
            seen.append(num_running)
            threading.Event().wait(0.001)
        return model_facts()

    monkeypatch.setattr(batch_loop, "warm_up", warm_up)
    running = Running(encoder, [[[FakeMicroBatch(compute) for _ in range(90)]] for _ in range(4)])
    running.work.put(Compiled())
    running.finish()
    assert seen == [0] * 20


def test_stages_follow_each_other(encoder: FakeEncoder) -> None:
    order: list[int] = []
    lock = threading.Lock()

    def noting(stage: int) -> FakeMicroBatch:
        def compute() -> None:
            with lock:
                order.append(stage)

        return FakeMicroBatch(compute)

    running = Running(encoder, [[[noting(stage) for _ in range(7)] for stage in range(4)]])
    running.finish()
    assert order == sorted(order)
    assert len(order) == 28


def test_the_end_of_a_lane_ends_the_loop(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    meeting = threading.Barrier(_NUM_LANES, timeout=HANG_S)

    def compute() -> None:
        meeting.wait()
        if threading.current_thread().name == "lane-1":
            raise KeyboardInterrupt("as when Rust panics")

    running = Running(encoder, [[[FakeMicroBatch(compute) for _ in range(_NUM_LANES)]]])
    running.wait_ended()
    assert running.said == []
