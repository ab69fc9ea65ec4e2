"""Harms the processes of a server at random while it serves: kills them, or stops them for a while."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from tests.hostile.target import Family

_WORKER_EVERY_S = 2.0
_GATEWAY_EVERY_S = 5.0
_STOP_S = 1.0


class Harm:
    """Harms a random worker every 2 s and a random gateway every 5 s, inside its context.

    Workers and gateways that still start are harmed too. lines: what was done, for a report. ended_at: monotonic
    time of the last harm.
    """

    def __init__(self, family: Family, harm: Callable[[psutil.Process], None], seed: int = 0) -> None:
        self._family, self._harm = family, harm
        self._random = random.Random(seed)
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.num_harmed = {"worker": 0, "gateway": 0}
        self.ended_at = 0.0

    def __enter__(self) -> Harm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._should_stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = {"worker": time.monotonic() + _WORKER_EVERY_S, "gateway": time.monotonic() + _GATEWAY_EVERY_S}
        every = {"worker": _WORKER_EVERY_S, "gateway": _GATEWAY_EVERY_S}
        while not self._should_stop.is_set():
            kind = min(due, key=lambda name: due[name])
            if self._should_stop.wait(max(0.0, due[kind] - time.monotonic())):
                return
            due[kind] += every[kind]
            with suppress(psutil.NoSuchProcess):
                self._harm_one(kind, self._family.workers if kind == "worker" else self._family.gateways)

    def _harm_one(self, kind: str, candidates: list[psutil.Process]) -> None:
        if candidates:
            self._harm(self._random.choice(candidates))
            self.num_harmed[kind] += 1
            self.ended_at = time.monotonic()


def kill(process: psutil.Process) -> None:
    """Send SIGKILL."""
    process.send_signal(signal.SIGKILL)


def pause(process: psutil.Process) -> None:
    """Send SIGSTOP, and a second later SIGCONT."""
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(_STOP_S)
    finally:
        process.send_signal(signal.SIGCONT)


def pause_group(pid: int, seconds: float) -> None:
    """Stop all processes of a process group for a while, as `docker pause` does."""
    os.killpg(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.killpg(pid, signal.SIGCONT)
