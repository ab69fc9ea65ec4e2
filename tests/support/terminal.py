"""A program in a real terminal: a pseudo-terminal, whose output a terminal emulator draws on a screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Sequence

import pyte

from tests.support.waiting import HANG_S, wait_until

COLUMNS, LINES = 120, 40
_LEAVE_SCREEN = b"\x1b[?1049l"  # back to what was shown before; pyte ignores it


class Terminal:
    """A running program, the screen that it draws, and its keyboard."""

    def __init__(self, command: Sequence[str], *, columns: int = COLUMNS) -> None:
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        self._settings = termios.tcgetattr(inner)
        self._inner = inner  # kept open, so that its settings can be read after the program's end
        self._screen = pyte.Screen(columns, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._written = b""
        # setsid makes the pseudo-terminal the controlling one, for Ctrl-C, and then becomes the program.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm-256color"},
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)
        os.close(self._inner)

    @property
    def text(self) -> str:
        """What is on the screen now."""
        while select.select([self._fd], [], [], 0)[0]:
            self._written += (read := os.read(self._fd, 65_536))
            self._stream.feed(read)
        return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for(self, *parts: str) -> None:
        """Wait until all of these parts are on the screen."""
        wait_until(
            lambda: all(part in self.text for part in parts),
            lambda: f"no {parts} on the screen:\n{self.text}",
        )

    def press(self, keys: str) -> None:
        """Press keys. Ctrl-C is the character 3."""
        os.write(self._fd, keys.encode())

    def wait_end(self) -> int:
        """Wait until the program has ended; return its exit code."""
        wait_until(lambda: self.text is not None and self.process.poll() is not None, "the program does not end")
        return self.process.wait(HANG_S)

    @property
    def is_as_before(self) -> bool:
        """Whether the program, which has ended, left the settings as they were and shows the screen of before."""
        return termios.tcgetattr(self._inner) == self._settings and _LEAVE_SCREEN in self._written
