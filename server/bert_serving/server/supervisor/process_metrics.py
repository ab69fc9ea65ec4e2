"""CPU time, memory and open files of each process of the server, read from /proc about once a second."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..broker.memory_guard import rss_bytes
from ..broker.text_format import Registry, head, number, series

_PREFIX = "bert_serving_process_"
_LOOK_EVERY_S = 1.0
_UTIME, _STIME = 11, 12  # positions in /proc/PID/stat behind the name of the program: see proc(5)
_METRICS: dict[str, tuple[str, Literal["counter", "gauge"]]] = {
    "cpu_seconds_total": ("CPU time of a process", "counter"),
    "resident_memory_bytes": ("Resident memory of a process", "gauge"),
    "open_fds": ("Files and connections that a process has open", "gauge"),
    "max_fds": ("Files and connections that a process may open", "gauge"),
}


class ProcessMetrics:
    """Shows the use of each process under its name. Two processes may share a name while one replaces the other.

    The files of a process take 30 us to read. So they are not read when metrics are asked for, but one time in a
    second, and when metrics are asked for those of a new process.

    running: returns the process ids by name, also for a name without a process. Only the thread of the server's
    loop may call the methods. Where the system has no /proc, all values are 0.
    """

    def __init__(self, registry: Registry, running: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        self._running = running
        self._next_look_at = -math.inf
        self._cpu: dict[str, _CpuTime] = {}
        self._lines: dict[str, list[str]] = {}  # by process: a line of each metric
        self._heads = [head(f"{_PREFIX}{metric}", *about) for metric, about in _METRICS.items()]
        registry.register(self)

    def look(self, now: float) -> None:
        """Read the values of all processes, if this was not done in the last second. now: monotonic seconds."""
        if now >= self._next_look_at:
            self._next_look_at = now + _LOOK_EVERY_S
            self._lines = {name: self._read(name, pids) for name, pids in self._running().items()}

    def numbers(self) -> tuple[()]:
        """Return nothing: the template has all numbers."""
        return ()

    @property
    def template(self) -> str:
        """All lines of all metrics."""
        for name, pids in self._running().items():
            if name not in self._lines:
                self._lines[name] = self._read(name, pids)
        metrics = zip(self._heads, zip(*self._lines.values(), strict=True), strict=True)
        return "".join([part for before, lines in metrics for part in (before, *lines)])

    def _read(self, name: str, pids: Sequence[int]) -> list[str]:
        values = (
            self._cpu.setdefault(name, _CpuTime()).of(pids),
            sum(map(rss_bytes, pids)),
            sum(map(_num_open_files, pids)),
            max(map(_max_open_files, pids), default=0),
        )
        lines = zip(_METRICS, values, strict=True)
        return [series(f"{_PREFIX}{metric}", {"process": name}) + f"{number(value)}\n" for metric, value in lines]


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
