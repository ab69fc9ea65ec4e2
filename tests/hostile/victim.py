"""The victim: a user who sends one short text again and again, and measures each call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field

import httpx
import numpy as np
import numpy.typing as npt
from bert_serving.client import BertClient

from tests.hostile.target import Target

Vector = npt.NDArray[np.floating]

TEXT = "Is anybody there?"
_PAUSE_S = 0.01
_MIN_COSINE = 0.999  # in bfloat16, other texts in the batch change a vector a little


@dataclass
class Calls:
    """The calls of one kind: seconds of each successful call, and a line for each failed one."""

    name: str
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the successful calls in milliseconds; infinity if no call succeeded."""
        return 1000 * float(np.percentile(self.seconds, percent)) if self.seconds else float("inf")

    def row(self) -> str:
        """Return the cells of a table: number of calls, errors, p50, p99 and longest call in ms."""
        times = " | ".join(f"{self.percentile_ms(percent):.0f}" for percent in (50, 99, 100))
        return f"{self.name} | {len(self.seconds)} | {len(self.errors)} | {times}"


class Victim:
    """Calls the server in two threads inside its context. The first call of each thread gives the expected vector.

    timeout_s: a call that takes longer is an error.
    """

    def __init__(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._should_stop = threading.Event()
        self.zeromq, self.http = Calls("ZeroMQ"), Calls("HTTP")
        self._threads = [
            threading.Thread(target=self._repeat, args=(self.zeromq, self._open_zeromq)),
            threading.Thread(target=self._repeat, args=(self.http, self._open_http)),
        ]
        self._is_warm = threading.Barrier(len(self._threads) + 1)

    @property
    def calls(self) -> list[Calls]:
        """The calls over ZeroMQ and those over HTTP."""
        return [self.zeromq, self.http]

    @property
    def errors(self) -> list[str]:
        """The errors of all calls."""
        return [f"{calls.name}: {error}" for calls in self.calls for error in calls.errors]

    def __enter__(self) -> Victim:
        for thread in self._threads:
            thread.start()
        self._is_warm.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._should_stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, calls: Calls, make: Callable[[], Caller]) -> None:
        try:
            caller = make()
            expected = caller.call()
        finally:
            self._is_warm.wait()
        with caller.resources:
            while not self._should_stop.wait(_PAUSE_S):
                began = time.perf_counter()
                try:
                    vector = caller.call()
                except Exception as exc:  # any error of a call is a result of the run
                    calls.errors.append(f"{type(exc).__name__}: {exc!s:.200}")
                    continue
                calls.seconds.append(time.perf_counter() - began)
                if (found := cosine(vector, expected)) < _MIN_COSINE:
                    calls.errors.append(f"wrong vector, cosine {found:.4f}")

    def _open_zeromq(self) -> Caller:
        client = BertClient(**self._target.ports, ignore_all_checks=True, timeout=round(self._timeout_s * 1000))
        return Caller(lambda: client.encode([TEXT])[0], closing(client))

    def _open_http(self) -> Caller:
        http = httpx.Client(base_url=self._target.url, timeout=self._timeout_s)

        def call() -> Vector:
            response = http.post("/encode", json={"id": 1, "texts": [TEXT]})
            response.raise_for_status()
            return np.array(response.json()["result"][0], np.float32)

        return Caller(call, closing(http))


@dataclass(frozen=True)
class Caller:
    """How to make one call, and what to close after the last one."""

    call: Callable[[], Vector]
    resources: AbstractContextManager[object]


def cosine(a: Vector, b: Vector) -> float:
    """Return the cosine of two vectors."""
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
