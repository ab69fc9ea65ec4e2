"""How long a test waits before it fails."""

from __future__ import annotations

import time
from collections.abc import Callable

#: After this number of seconds, a waiting test fails: the process that it waits for seems to hang. The limit does
#: not test speed. On two cores, the longest wait takes less than a fifth of HANG_S; slower machines need longer.
HANG_S = 300


def wait_until(condition: Callable[[], object], what: Callable[[], object] | str = "") -> None:
    """Return when the condition is true.

    Raises AssertionError if the condition is still false after HANG_S. The message is `what` or its return value.
    """
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)
