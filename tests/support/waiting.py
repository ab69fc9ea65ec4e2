"""How long a test waits before it fails."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds after which a test fails, because what it waits for seems to hang. The limit does not test speed: on two
#: cores, the longest wait of a test takes less than a fifth of it, and slower machines run the same tests.
HANG_S = 300


def wait_until(condition: Callable[[], object], what: Callable[[], object] | str = "") -> None:
    """Return when the condition is true.

    Raises AssertionError with `what` (or what it returns) if that takes longer than HANG_S.
    """
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)
