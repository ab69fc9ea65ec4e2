"""What the server tells its gateway processes with signals. They are blocked until a gateway handles them."""

from __future__ import annotations

from signal import Signals

RELOAD_KEYS = Signals.SIGHUP
RELOAD_CERTIFICATE = Signals.SIGUSR1  # another signal, so that a file with an error is reported only once
