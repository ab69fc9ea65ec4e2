"""The clock by which the server judges whether a child process is silent or too slow."""

from __future__ import annotations

_MAX_TURN_S = 1.0  # the loop waits at most half a second, so a normal turn is shorter


class LoopClock:
    """Counts the seconds for which the server's loop has run. now: seconds since the start.

    A turn of the loop counts for at most one second. So a pause of the whole server (SIGSTOP, a suspended
    container, one very long turn) does not make its children look silent: the loop reads what they have sent
    before the clock shows more than one second of the pause.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._turned_at: float | None = None

    def turn(self, monotonic_s: float) -> None:
        """Note that a turn of the loop begins now, in monotonic seconds."""
        if self._turned_at is not None:
            self.now += min(_MAX_TURN_S, monotonic_s - self._turned_at)
        self._turned_at = monotonic_s
