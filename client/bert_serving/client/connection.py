"""Connection: the two sockets of a client, and whether they are connected. Only `wait` blocks.

One thread at a time may call `wait` and `receive`. One thread at a time may call the other methods, even while
another thread is in `wait` or `receive`.

Rules of this file:
- ZeroMQ connects the receiver, and connects it again after a loss. The receiver's monitor reports each handshake
  and each loss of the connection. If the server refuses the key, ZeroMQ gives up; then `receive` connects the
  receiver again.
- The sender has no monitor, because a monitor needs two more file descriptors. The sender is connected while it
  is writable. After a loss, `maintain` records the loss and then connects the sender again. ZeroMQ must not
  do this by itself: a loss could stay unnoticed, and calls would wait without end for requests that were lost.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from contextlib import suppress
from functools import lru_cache

import zmq
from bert_serving.protocol import Frames, Unavailable
from zmq.utils.monitor import recv_monitor_message

from .address import Address

_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000
_RECONNECT_MAX_MS = 1_000
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_RETRY_S = (0.5, 4.0)  # first and longest pause between two attempts of this file to connect a socket

_RETRY_LOST_MS = 100
_NUM_FILES = 6  # files that a connection opens: two for TCP, four with which ZeroMQ wakes its threads
_NUM_FILES_TO_OPEN = _NUM_FILES + 8  # the context needs eight more; libzmq aborts if it cannot open them


@lru_cache(1)
def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the context of all clients in this process."""
    context = zmq.Context()
    context.max_sockets = context.get(zmq.SOCKET_LIMIT)  # the default allows only 255 clients
    return context


os.register_at_fork(after_in_child=_context.cache_clear)


class Connection:
    """A PUSH socket for requests and a SUB socket for replies. Both connect in the background.

    Raises OSError (EMFILE) if the process may not open as many files as the sockets need.
    """

    def __init__(self, identity: bytes, address: Address):
        _check_files_left()
        self._address = address
        self._is_lost = False
        self._can_send = self._can_receive = False
        self._sender_trouble = "port accepts no requests; are port and port_out right?"
        self._receiver_trouble = "no server replies at port_out"
        self._key_trouble: str | None = None
        self._sender = _open(zmq.PUSH, address)
        # A request is sent only while the sender is connected. ZeroMQ must not keep a request and send it later,
        # for example to a server that was restarted.
        self._sender.immediate = 1
        self._sender.reconnect_ivl = -1
        self._sender.sndhwm = 0  # without a limit, the socket is writable exactly while it is connected
        self._sender_attempts = _Attempts(self._sender, address.requests)
        self._receiver = _open(zmq.SUB, address)
        self._receiver.reconnect_ivl_max = _RECONNECT_MAX_MS
        self._receiver.rcvhwm = 0
        self._receiver.subscribe(identity)
        self._monitor = self._receiver.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED
        )
        self._receiver.connect(address.replies)
        self._receiver_attempts = _Attempts(self._receiver, address.replies)
        self._is_given_up = False  # whether ZeroMQ no longer tries to connect the receiver
        self._poller = select.poll()
        for descriptor in self.descriptors:
            self._poller.register(descriptor, select.POLLIN)

    @property
    def is_connected(self) -> bool:
        """Whether both sockets were connected when `receive` and `maintain` were last called."""
        return self._can_send and self._can_receive

    @property
    def trouble(self) -> str:
        """Why the connection is not complete, for an error message."""
        # The receiver comes first: the sender does not try to connect before the receiver is connected.
        what = self._sender_trouble if self._can_receive else self._receiver_trouble
        return f"{self._name}: {what}"

    @property
    def _name(self) -> str:
        return f"{self._address.requests_name} (port), {self._address.replies_name} (port_out)"

    @property
    def descriptors(self) -> list[int]:
        """The file descriptors that become readable when `receive` or `maintain` should be called."""
        return [int(socket.fileno()) for socket in (self._sender, self._receiver, self._monitor)]

    def wait(self, timeout_s: float) -> None:
        """Return when one of the descriptors is readable, or after the timeout in seconds."""
        self._poller.poll(round(timeout_s * 1000))

    def receive(self, now: float) -> list[Frames]:
        """Return the messages that have arrived, and read from the monitor whether the receiver is connected.

        Connect the receiver again if ZeroMQ has given up.
        """
        while _state(self._monitor) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor)
            self._note(event["event"], event["value"])
        if self._is_given_up and self._receiver_attempts.connect(now):
            self._is_given_up = False
        messages: list[Frames] = []
        while _state(self._receiver) & zmq.POLLIN:
            messages.append(list(self._receiver.recv_multipart(zmq.NOBLOCK)))
        return messages

    def maintain(self, now: float) -> None:
        """Check whether the sender is connected. If only the receiver is connected, connect the sender too."""
        could_send, self._can_send = self._can_send, bool(_state(self._sender) & zmq.POLLOUT)
        if could_send and not self._can_send:
            self._is_lost = True
            self._sender_trouble = "the connection to port was lost"
        if self._can_send:
            self._sender_attempts.reset()
        elif self._can_receive:
            self._sender_attempts.connect(now)

    def take_loss(self) -> Unavailable | None:
        """Return an error if the connection was lost since the last call, else None.

        Requests that were sent before the loss may not arrive. The caller sends them again on the next connection,
        or ends them with this error.
        """
        if not self._is_lost:
            return None
        self._is_lost = False
        return Unavailable(f"the server at {self._address.requests_name} went away", retry_after_ms=_RETRY_LOST_MS)

    def timeout_error(self, *, is_subscribed: bool) -> TimeoutError:
        """Return the error for a call whose deadline passed. is_subscribed: see Session."""
        if not self.is_connected:
            return TimeoutError(f"cannot reach the server: {self.trouble}")
        if not is_subscribed:
            return TimeoutError(f"no reply from {self._name}: do both ports belong to the same server?")
        return TimeoutError(
            f"the server at {self._address.requests_name} did not reply in time; "
            "is the client's timeout long enough for this request?"
        )

    def send(self, frames: Frames) -> bool:
        """Send a request. Return False, without sending, if the sender is not connected."""
        try:
            self._sender.send_multipart([bytes(frame) for frame in frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close the sockets. Messages that were not sent yet are dropped."""
        self._receiver.disable_monitor()
        for socket in (self._monitor, self._receiver, self._sender):
            socket.close(linger=0)

    def _note(self, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._can_receive = True
            self._key_trouble = None
            self._receiver_attempts.reset()
            return
        if event & HANDSHAKE_FAILED:  # DISCONNECTED follows
            self._is_given_up = event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            if self._is_given_up or self._key_trouble is None:  # a known reason is not replaced by an unknown one
                self._key_trouble = key_trouble(event, value, has_key=self._address.curve is not None)
            return
        if self._can_receive:
            self._is_lost = True
            self._receiver_trouble = "the connection to port_out was lost"
        else:
            self._receiver_trouble = self._key_trouble or (
                "port_out is not a server's port for results; are port and port_out right, or swapped? "
                "Or the server requires a key (curve_dir)"
            )
        self._can_receive = False


class _Attempts:
    """Connects a socket again, with growing pauses."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self.reset()

    def reset(self) -> None:
        """Make the next attempt at once, because the socket was connected."""
        self._pause_s, self._next_at = _RETRY_S[0], 0.0

    def connect(self, now: float) -> bool:
        """Connect the socket unless the latest attempt was too recent. Return whether this was an attempt."""
        if now < self._next_at:
            return False
        with suppress(zmq.ZMQError):  # raised if the socket has no connection to drop
            self._socket.disconnect(self._endpoint)
        self._socket.connect(self._endpoint)
        self._next_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _RETRY_S[1])
        return True


def key_trouble(event: int, value: int, *, has_key: bool) -> str | None:
    """Return what a failed handshake says about the keys; None if it says nothing.

    event, value: one of HANDSHAKE_FAILED, and its value.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "the server refused the key of this client (client.key_secret)"
    if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH and has_key:
        return "the server uses no keys; leave out curve_dir"
    if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "the server requires a key (curve_dir)"
    if has_key:  # the server closed the connection first, so its reason is not known
        return "the handshake failed; is server.key the key of this server? Or the server uses no keys"
    return None


def _open(kind: int, address: Address) -> zmq.Socket[bytes]:
    socket = _context().socket(kind)
    socket.ipv6 = address.is_ipv6
    if address.curve is not None:
        address.curve.apply_to(socket)
    socket.linger = 0
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
    socket.tcp_keepalive = 1
    return socket


def _state(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(zmq.EVENTS))


def _check_files_left() -> None:
    """Raise OSError if a connection could not open its files. libzmq itself would abort or retry without end."""
    opened: list[int] = []
    try:
        for _ in range(_NUM_FILES_TO_OPEN):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401  # closed in `finally`
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise OSError(
            exc.errno,
            f"too many open files: a client needs {_NUM_FILES}, and this process may open {limit} (ulimit -n). "
            "Threads may share one client, and closing a client closes its files",
        ) from exc
    finally:
        for descriptor in opened:
            os.close(descriptor)
