"""The two sockets of a client and what is known of their peers. Non-blocking.

`wait` and `receive` are for one thread at a time, and so is all the rest; the two may go on side by side.

Rules of this file:
- The receiver finds the server, again and again if need be; its monitor tells of each handshake and each loss.
- The sender has no monitor, which would cost two more descriptors. It has a line as long as it is writable,
  and gets a new one from `tend_sender` alone, so that no loss can be mended before it was counted.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from contextlib import suppress
from functools import lru_cache

import zmq
from bert_serving.protocol import Frames
from zmq.utils.monitor import recv_monitor_message

_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000
_RECONNECT_MAX_MS = 1_000
_SENDER_PATIENCE_S = (0.5, 4.0)  # for the first attempt of the sender to connect, and for the longest

_NUM_FILES = 6  # of a connection: two for TCP, the rest is how ZeroMQ wakes its threads
_NUM_FILES_TO_OPEN = _NUM_FILES + 8  # those of the context too; libzmq aborts where they are missing


@lru_cache(1)
def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the context of all clients in this process."""
    context = zmq.Context()
    context.max_sockets = context.get(zmq.SOCKET_LIMIT)  # the default is enough for 255 clients
    return context


os.register_at_fork(after_in_child=_context.cache_clear)


class Connection:
    """PUSH to `ip:port`, SUB from `ip:port_out`, both connecting in the background.

    num_losses: how often the line broke after it had been whole; requests sent before are lost with it.
    Raises OSError (EMFILE) where the process may not open as many files as this takes.
    """

    def __init__(self, identity: bytes, ip: str, port: int, port_out: int):
        _check_files_left()
        host = f"[{ip}]" if ":" in ip else ip
        self._sender_address, self._receiver_address = f"{host}:{port}", f"{host}:{port_out}"
        self.num_losses = 0
        self._can_send = self._can_receive = False
        self._sender_trouble = "port takes no requests; are port and port_out right?"
        self._receiver_trouble = "nobody answers at port_out"
        self._patience_s, self._connect_again_at = _SENDER_PATIENCE_S[0], 0.0
        self._sender = _open(zmq.PUSH, ip)
        # A request is handed to a live connection or not at all: it must not surface after a restart.
        self._sender.immediate = 1
        self._sender.reconnect_ivl = -1
        self._sender.sndhwm = 0  # writable then means that there is a line, and nothing else
        self._receiver = _open(zmq.SUB, ip)
        self._receiver.reconnect_ivl_max = _RECONNECT_MAX_MS
        self._receiver.rcvhwm = 0
        self._receiver.subscribe(identity)
        self._monitor = self._receiver.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._receiver.connect(f"tcp://{self._receiver_address}")
        self._poller = select.poll()
        for descriptor in self.descriptors:
            self._poller.register(descriptor, select.POLLIN)

    @property
    def is_connected(self) -> bool:
        """Whether both sockets have shaken hands with a ZeroMQ peer, as far as was noted."""
        return self._can_send and self._can_receive

    @property
    def trouble(self) -> str:
        """What keeps the line from being whole, for an error message."""
        # In this order, for the sender is not tried before the receiver has found the server.
        what = self._sender_trouble if self._can_receive else self._receiver_trouble
        return f"{self._sender_address} (port), {self._receiver_address} (port_out): {what}"

    @property
    def descriptors(self) -> list[int]:
        """What becomes readable where `receive` or `tend_sender` has something to find."""
        return [int(socket.fileno()) for socket in (self._sender, self._receiver, self._monitor)]

    def wait(self, timeout_s: float) -> None:
        """Return when one of the descriptors is readable, or after the timeout."""
        self._poller.poll(round(timeout_s * 1000))

    def receive(self) -> list[Frames]:
        """Return the messages that are here, and note what the monitor says of the receiver's peer."""
        while _state(self._monitor) & zmq.POLLIN:
            self._note(recv_monitor_message(self._monitor)["event"])
        messages: list[Frames] = []
        while _state(self._receiver) & zmq.POLLIN:
            messages.append(list(self._receiver.recv_multipart(zmq.NOBLOCK)))
        return messages

    def tend_sender(self, now: float) -> None:
        """Note whether the sender has a line, and let it connect where the receiver has found the server."""
        could_send, self._can_send = self._can_send, bool(_state(self._sender) & zmq.POLLOUT)
        if self._can_send:
            self._patience_s, self._connect_again_at = _SENDER_PATIENCE_S[0], 0.0
            return
        if could_send:
            self.num_losses += 1
            self._sender_trouble = "the connection to port broke"
        if self._can_receive and now >= self._connect_again_at:
            with suppress(zmq.ZMQError):  # that there is nothing left of the last attempt
                self._sender.disconnect(f"tcp://{self._sender_address}")
            self._sender.connect(f"tcp://{self._sender_address}")
            self._connect_again_at = now + self._patience_s
            self._patience_s = min(2 * self._patience_s, _SENDER_PATIENCE_S[1])

    def send(self, frames: Frames) -> bool:
        """Hand a request to the line; return False if there is none now."""
        try:
            self._sender.send_multipart([bytes(frame) for frame in frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Drop the line; nothing that is still inside leaves."""
        self._receiver.disable_monitor()
        for socket in (self._monitor, self._receiver, self._sender):
            socket.close(linger=0)

    def _note(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._can_receive = True
            return
        if self._can_receive:
            self.num_losses += 1
            self._receiver_trouble = "the connection to port_out broke"
        else:
            self._receiver_trouble = (
                "what answers at port_out is something else; are port and port_out right, or swapped?"
            )
        self._can_receive = False


def _open(kind: int, ip: str) -> zmq.Socket[bytes]:
    socket = _context().socket(kind)
    socket.ipv6 = ":" in ip
    socket.linger = 0
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
    socket.tcp_keepalive = 1
    return socket


def _state(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(zmq.EVENTS))


def _check_files_left() -> None:
    """Raise OSError unless a connection can open its files: libzmq itself would abort, or try for ever."""
    opened: list[int] = []
    try:
        for _ in range(_NUM_FILES_TO_OPEN):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401  # closed below, whatever happens
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise OSError(
            exc.errno,
            f"too many open files: a client needs {_NUM_FILES}, and this process may have {limit} (ulimit -n). "
            "Threads may share one client, and a client that is closed gives its files back",
        ) from exc
    finally:
        for descriptor in opened:
            os.close(descriptor)
