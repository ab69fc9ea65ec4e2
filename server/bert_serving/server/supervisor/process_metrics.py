"""CPU time, memory and open files of each process of the server, read from /proc when metrics are asked for."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ..broker.memory_guard import rss_bytes

_PREFIX = "bert_serving_process_"
_UTIME, _STIME = 11, 12  # positions in /proc/PID/stat behind the name of the program: see proc(5)


class ProcessMetrics(Collector):
    """Shows the use of each process under its name. Two processes may share a name while one replaces the other.

    running: returns the process ids by name, also for a name without a process. Only the thread of the server's
    loop may collect. Where the system has no /proc, all values are 0.
    """

    def __init__(self, registry: CollectorRegistry, running: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        self._running = running
        self._cpu: dict[str, _CpuTime] = {}
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        running = self._running()
        cpu_s = {name: self._cpu.setdefault(name, _CpuTime()).of(pids) for name, pids in running.items()}
        cpu = CounterMetricFamily(f"{_PREFIX}cpu_seconds", "CPU time of a process", labels=["process"])
        for name, seconds in cpu_s.items():
            cpu.add_metric([name], seconds)
        yield cpu
        yield _gauge("resident_memory_bytes", "Resident memory of a process", running, rss_bytes)
        yield _gauge("open_fds", "Files and connections that a process has open", running, _num_open_files)
        yield _gauge("max_fds", "Files and connections that a process may open", running, _max_open_files, max)


@dataclass(slots=True)
class _CpuTime:
    """CPU seconds of all processes that have had one name. They never decrease when a process is replaced.

    total: as far as it was seen. What a process used between the last look and its end is not counted.
    """

    total: float = 0.0
    seen: dict[int, float] = field(default_factory=dict)  # by process id

    def of(self, pids: Sequence[int]) -> float:
        """Return the total after a look at the processes that have the name now."""
        before, self.seen = self.seen, {}
        for pid in pids:
            earlier = before.get(pid, 0.0)
            seconds = _cpu_s(pid)
            self.seen[pid] = earlier if seconds is None else seconds
            is_new = self.seen[pid] < earlier  # the system has given the id to another process
            self.total += self.seen[pid] - (0.0 if is_new else earlier)
        return self.total


def _gauge(
    name: str,
    documentation: str,
    running: Mapping[str, Sequence[int]],
    read: Callable[[int], float],
    merge: Callable[[Iterable[float]], float] = sum,
) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, documentation, labels=["process"])
    for process, pids in running.items():
        family.add_metric([process], merge([0, *map(read, pids)]))
    return family


def _cpu_s(pid: int) -> float | None:
    """Return the CPU seconds of a process; None if they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):  # the process has ended, or the system has no /proc
        return None


def _num_open_files(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    try:
        # Since Linux 6.2 the size of this folder is the number of its entries; before that it is zero.
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return 0


def _max_open_files(pid: int) -> float:
    try:
        soft = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except (OSError, AttributeError):  # only Linux has prlimit
        return 0
    return math.inf if soft == resource.RLIM_INFINITY else soft
