"""CPU time, memory and open files of real processes."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from bert_serving.server.broker.text_format import Registry
from bert_serving.server.supervisor.process_metrics import ProcessMetrics
from prometheus_client.parser import text_string_to_metric_families


class Shown:
    """The metrics of processes. running: process ids by name."""

    def __init__(self, running: Mapping[str, Sequence[int]]) -> None:
        self.running = running
        self._registry = Registry()
        self._metrics = ProcessMetrics(self._registry, lambda: self.running)
        self._num_seconds = itertools.count()

    def look(self) -> None:
        """Look at the processes, at least a second after the last look."""
        self._metrics.look(2.0 * next(self._num_seconds))

    def __getitem__(self, name: str) -> dict[str, float]:
        """Return the values of a metric by the names of the processes."""
        families = text_string_to_metric_families(self._registry.snapshot().text())
        samples = [sample for family in families for sample in family.samples]
        return {s.labels["process"]: s.value for s in samples if s.name == f"bert_serving_process_{name}"}


@contextmanager
def idle_process() -> Iterator[int]:
    """Start a process; yield its id when it has started, so that its memory does not change any more."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"started\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_open_files_are_counted_exactly() -> None:
    shown = Shown({"server": [os.getpid()]})
    before = shown["open_fds"]["server"]
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(open(os.devnull))
        shown.look()
        assert shown["open_fds"] == {"server": before + 5}
    assert shown["max_fds"] == {"server": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}


def test_two_processes_of_one_name_are_added_up_and_a_name_without_a_process_has_zeros() -> None:
    with idle_process() as one, idle_process() as other:
        shown = Shown({"a": [one], "b": [other], "both": [one, other], "none": []})
        memory = shown["resident_memory_bytes"]
        assert memory["a"] > 0
        assert memory["both"] == memory["a"] + memory["b"]
        assert shown["max_fds"]["both"] == shown["max_fds"]["a"]
        for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds"):
            assert shown[name]["none"] == 0


def test_cpu_time_grows_with_work_and_does_not_decrease_when_the_process_is_replaced() -> None:
    shown = Shown({"worker-0": [os.getpid()]})
    used = [shown["cpu_seconds_total"]["worker-0"]]
    assert used[0] == pytest.approx(time.process_time(), abs=0.1)
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    shown.look()
    used.append(shown["cpu_seconds_total"]["worker-0"])
    assert used[1] > used[0]
    with idle_process() as successor:
        shown.running = {"worker-0": [successor]}
        shown.look()
        assert shown["cpu_seconds_total"]["worker-0"] >= used[1]
        shown.running = {"worker-0": []}
        shown.look()
        assert shown["cpu_seconds_total"]["worker-0"] >= used[1]


def test_processes_are_read_once_in_a_second_and_a_new_one_at_once() -> None:
    running = {"server": [os.getpid()]}
    registry = Registry()
    metrics = ProcessMetrics(registry, lambda: running)
    metrics.look(10.0)
    before = registry.snapshot()
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(open(os.devnull))
        metrics.look(10.9)
        assert registry.snapshot() == before
        running["gateway"] = [os.getpid()]
        lines = registry.snapshot().text().splitlines()
        assert len(lines) == len(before.text().splitlines()) + 4
        metrics.look(11.0)
        assert registry.snapshot() != before


def test_a_process_that_has_ended_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    shown = Shown({"gateway": [process.pid]})
    assert shown["resident_memory_bytes"] == shown["open_fds"] == shown["cpu_seconds_total"] == {"gateway": 0}
