"""Keeps file descriptors free for workers and gateways, whatever the number of clients.

A process without free descriptors cannot accept a connection. libzmq 4.3.5 survives this on a TCP port. On a
private ipc path it ends the process (EMFILE in ipc_listener.cpp). So clients must never take the last descriptors.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from .sparse_log import SparseLog

_OPEN_FILES = "/proc/self/fd"
_CHECK_EVERY_S = 0.02
_MAX_BACKLOG = 100  # libzmq's default
_FILES_OF_CHILD = 8  # connections and pipes of a worker or gateway, while its predecessor still ends
# From Linux's asm/socket.h and linux/filter.h; Python does not have these names. The filter has one instruction,
# "return 0", so no byte of any packet passes.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_BLOCK_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)


class Door:
    """A listening TCP socket of libzmq that can be shut for new connections. Open connections are not affected.

    Unbinding the port is no way: libzmq then ends the connections that came through it. A shut door ignores what
    arrives, and a client tries again until the door is open. descriptor: of the listening socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._listener = socket.socket(fileno=os.dup(descriptor))

    def shut(self) -> None:
        """Ignore new connections. At most a backlog of connections may still come through. Raises OSError."""
        block = ctypes.create_string_buffer(_BLOCK_ALL, len(_BLOCK_ALL))
        program = struct.pack("HP", 1, ctypes.addressof(block))
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def open(self) -> None:
        """Accept new connections again."""
        with suppress(OSError):  # there is no filter if the system did not accept it
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def close(self) -> None:
        """Release the descriptor; libzmq has its own."""
        self._listener.close()


class DescriptorReserve:
    """Shuts the doors for clients before they take the last descriptors, and opens them when there is room again.

    While the doors are open, the reserve consists of open descriptors, which no client can take. When fewer
    descriptors than `size` are free besides it, the doors are shut and the reserve is set free. So a burst of
    clients between two checks cannot take the reserve. What remains: a worker or gateway that connects between
    such a burst and the next check. limit: how many descriptors the process may have.
    """

    def __init__(self, doors: Sequence[Door], *, size: int, limit: int) -> None:
        self._doors, self._size, self._limit = doors, size, limit
        self._is_open = True
        self._held = self._hold()
        self._sparse_log = SparseLog()
        self._next_check = 0.0

    def check(self, now: float) -> None:
        """Count the descriptors, unless they were counted just now; shut or open the doors. now: monotonic s."""
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_EVERY_S
        room = self._limit - _num_open()
        if self._is_open and room < self._size:
            self._shut(room)
        elif not self._is_open and room >= 3 * self._size:  # after this the reserve is held, and 2 * size are free
            self._open()

    def close(self) -> None:
        """Release the reserve."""
        while self._held:
            os.close(self._held.pop())

    def _shut(self, room: int) -> None:
        self._sparse_log.warning(
            "new clients must wait: only %d more files may be opened; the limit (ulimit -n) is %d",
            max(0, room) + self._size,
            self._limit,
        )
        try:
            for door in self._doors:
                door.shut()
        except OSError as exc:  # a system that only looks like Linux, such as gVisor, may have no filters
            self._sparse_log.warning("cannot let new clients wait: %s", exc)
        self.close()
        self._is_open = False

    def _open(self) -> None:
        self._held = self._hold()
        for door in self._doors:
            door.open()
        self._is_open = True
        self._sparse_log.warning("new clients are accepted again")

    def _hold(self) -> list[int]:
        first = os.open(os.devnull, os.O_RDONLY)
        return [first, *(os.dup(first) for _ in range(self._size - 1))]


def max_open_files() -> int:
    """Return how many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def backlog_for(limit: int) -> int:
    """Return how many connections may wait at each port: few if the limit of descriptors is low."""
    return max(1, min(_MAX_BACKLOG, limit // 32))


def reserve_for(num_children: int, limit: int) -> int:
    """Return the size of a reserve: for the children, and for what still comes through two doors once shut."""
    return max(1, min(limit // 8, _FILES_OF_CHILD * num_children + 4 * backlog_for(limit)))


def _num_open() -> int:
    # Since Linux 6.2 the size of this folder is the number of its entries; before that it is zero.
    return os.stat(_OPEN_FILES).st_size or len(os.listdir(_OPEN_FILES))
