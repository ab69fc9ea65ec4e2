"""When requests arrive in the open loop, and when users send their next one."""

from __future__ import annotations

import random


def poisson_arrivals(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Return the times of arrivals in 0..seconds, in order: a Poisson process of this rate per second.

    The same arguments give the same times, so each system gets the same load.
    """
    rng = random.Random(seed)
    times, now = [], rng.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += rng.expovariate(rate)
    return times
