"""Reads single keys from a terminal, without Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType


class KeyPresses:
    """Within its `with` block, the terminal passes on each key at once and does not show it.

    Ctrl-C still raises KeyboardInterrupt. At the end, the terminal is set as it was.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._settings = termios.tcgetattr(self._fd)

    def __enter__(self) -> KeyPresses:
        tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)

    def next(self, timeout_s: float) -> str:
        """Return the keys that were pressed, as soon as there are any; empty after timeout_s without any.

        Raises EOFError if the terminal is gone.
        """
        readable, _, _ = select.select([self._fd], [], [], timeout_s)
        if not readable:
            return ""
        pressed = os.read(self._fd, 64)
        if not pressed:
            raise EOFError("the terminal is gone")
        return pressed.decode(errors="replace")
