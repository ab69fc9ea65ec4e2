"""Shows the supervisor that the event loop of this gateway runs."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

_HEARTBEAT_S = 1.0


def start_heartbeat(descriptor: int) -> None:
    """Write a byte to a pipe now and every second from now on. Call this in the event loop."""
    os.set_blocking(descriptor, False)
    _beat(asyncio.get_running_loop(), descriptor)


def _beat(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    # The pipe is full if the server process is stopped. It is closed if the server process is dead.
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(descriptor, b"\0")
    loop.call_later(_HEARTBEAT_S, _beat, loop, descriptor)
