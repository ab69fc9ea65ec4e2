"""Whether the other side has closed a connection that is not being read at the moment.

An event loop notices the end of a connection only while it reads. While reading is paused, ask the kernel.
"""

from __future__ import annotations

import asyncio
import select

# Linux reports with POLLRDHUP that the other side sends nothing more. Elsewhere, only errors and resets are seen.
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


def has_hung_up(transport: asyncio.BaseTransport) -> bool:
    """Return whether the other side has closed or reset the connection. Does not wait, and reads nothing.

    The kernel knows this only after it has received all bytes that were sent before.
    """
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), _HANG_UP)
    return bool(poll.poll(0))
