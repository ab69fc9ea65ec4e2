"""When a child may be started again after its process has died."""

from __future__ import annotations

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 4.0  # so that a server whose workers were killed is ready again soon after the reason is gone


class Backoff:
    """The pauses between the starts of one child.

    A child whose process had been ready may start again at once. Otherwise there is a pause of 1, 2, 4, 4 ... s.
    num_early_deaths: how many times in a row the process died before it was ready. restart_at: time of the loop's
    clock.
    """

    def __init__(self) -> None:
        self.num_early_deaths = 0
        self.restart_at = 0.0

    def died(self, now: float, *, was_ready: bool) -> None:
        """Note that the process has died, or that it could not be started."""
        self.num_early_deaths = 0 if was_ready else self.num_early_deaths + 1
        pause = 0.0 if was_ready else _FIRST_PAUSE_S * 2 ** min(self.num_early_deaths - 1, 10)
        self.restart_at = now + min(pause, _MAX_PAUSE_S)
