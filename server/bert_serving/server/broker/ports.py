"""The broker's sockets: opens and binds them, sets their limits, and receives messages.

    requests           PULL     from clients
    gateway_requests   PULL     from gateways, on a private ipc path
    replies            XPUB     to clients, and to gateways on a private ipc path. It is in manual mode: the broker
                                decides which subscriptions are accepted
    workers            ROUTER   to and from workers, on a private ipc path

Every receive and send is non-blocking.
"""

from __future__ import annotations

import ipaddress
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import zmq
from bert_serving.protocol import MAX_IDENTITY_BYTES
from bert_serving.protocol.encoding import Frame
from zmq.utils.monitor import recv_monitor_message

from .budget import Budget
from .curve import CurveServer
from .descriptors import DescriptorReserve, Door, backlog_for, max_open_files, reserve_for
from .memory_guard import MemoryGuard
from .request_reader import NOBLOCK, POLLIN, RequestReader, receive_frames
from .sparse_log import SparseLog

# Room for an identity and the command name SUBSCRIBE. A limit is needed because libzmq keeps a tree node for every
# byte of a subscription.
_MAX_SUBSCRIPTION_BYTES = 16 + MAX_IDENTITY_BYTES
# With CURVE, the longest message of a handshake is INITIATE with about 290 bytes (https://rfc.zeromq.org/spec/26).
_MAX_CURVE_BYTES = 512
# libzmq queues at most this many replies for each client. Further replies wait in the outbox, which limits their
# bytes.
_REPLIES_IN_PIPE = 16
_KEEPALIVE_S = 30  # a silent peer is probed after this time, and disconnected after three probes without reply
_LINGER_MS = 1_000
# libzmq reads at most this many requests of each client in advance; further ones wait in the system's buffers and
# in the client. One may have twice -max_message_mb, and what is not read yet is not counted in -memory_mb.
_UNREAD_REQUESTS = 2
# A request of up to so many times the largest size is received and refused. If the old client lost its connection
# instead, it would wait without end.
_RECEIVED = 2
_REBIND_MS = 20
_LONG_S = 1.0
_MORE = NOBLOCK | int(zmq.SNDMORE)


@dataclass(frozen=True, slots=True)
class PrivateEndpoints:
    """The addresses that only processes of this server use: they are in a folder that only its user may open."""

    workers: str
    requests: str
    replies: str

    @classmethod
    def in_folder(cls, folder: str | Path) -> PrivateEndpoints:
        """Return addresses of sockets in this folder."""
        return cls(f"ipc://{folder}/workers", f"ipc://{folder}/requests", f"ipc://{folder}/replies")


class PortInUse(Exception):
    """The server cannot listen on a port; the message says which port and why."""


class Ports:
    """Opens the sockets. If one cannot be bound, closes the others and raises PortInUse.

    max_message_bytes: the largest request that the broker accepts. Larger ones are received, so that it can
    reply with an error; but libzmq closes the connection of a client whose request is more than twice as large.
    num_children: how many workers and gateways there are. max_growth: by how many bytes the memory of the process
    may grow before all clients are disconnected. curve: who may connect over TCP; None: every client, without
    encryption.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        port_out: int,
        endpoints: PrivateEndpoints,
        max_message_bytes: int,
        num_children: int,
        max_growth: int = sys.maxsize,
        curve: CurveServer | None = None,
    ) -> None:
        self._context = zmq.Context()
        self._curve = curve
        self._host, self._port, self._port_out = host, port, port_out
        self._max_message_bytes = max_message_bytes
        self._num_children = num_children
        self._doors = ExitStack()  # what belongs to the TCP ports
        self._are_open, self._closed_at = False, 0.0  # the TCP ports
        self._sparse_log = SparseLog()
        self._paused_until: float | None = None
        self.gateway_requests = self._open(zmq.PULL)
        self._gateway_reader = RequestReader(self.gateway_requests)
        self.replies = self._open(zmq.XPUB)
        self.replies.maxmsgsize = _MAX_SUBSCRIPTION_BYTES
        self.replies.xpub_manual = 1
        self.replies.xpub_nodrop = 1
        self.replies.sndhwm = _REPLIES_IN_PIPE
        self.replies.linger = _LINGER_MS  # also for a client that does not read when all are disconnected
        self.workers = self._open(zmq.ROUTER)
        self.workers.router_mandatory = 1
        self.workers.sndhwm = 0  # no limit is needed: a worker has only a few batches
        self._poller = zmq.Poller()
        for socket in (self.gateway_requests, self.replies, self.workers):
            self._poller.register(socket, zmq.POLLIN)
        self.requests = self._open_requests()
        try:
            # The private addresses are bound before CURVE is turned on: an option holds only for what is bound
            # after it is set.
            self.workers.bind(endpoints.workers)
            self.gateway_requests.bind(endpoints.requests)
            self.replies.bind(endpoints.replies)
            if curve is not None:
                curve.start(self._context)
                curve.protect(self.requests)
                curve.protect(self.replies)
                self.replies.maxmsgsize = _MAX_CURVE_BYTES
            self._open_doors()
            self._guard = MemoryGuard(max_growth)
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_ms: int) -> bool:
        """Wait at most `timeout_ms` until a message arrives or a watched file descriptor is readable.

        Return whether a watched file descriptor is readable.
        """
        if not self._are_open:
            timeout_ms = min(timeout_ms, _REBIND_MS)
        if self._paused_until is not None:
            timeout_ms = min(timeout_ms, max(0, math.ceil((self._paused_until - time.monotonic()) * 1000)))
        return any(isinstance(source, int) for source, _ in self._poller.poll(timeout_ms))

    def requests_of_gateways(self, budget: Budget) -> Iterator[list[zmq.Frame]]:
        """Yield messages of gateways that have arrived, until the budget is spent."""
        return self._gateway_reader.messages(budget)

    def requests_of_clients(self, now: float, budget: Budget) -> Iterator[list[zmq.Frame]]:
        """Yield messages of clients that have arrived, until the budget is spent. None arrive during a pause."""
        if self._paused_until is not None:
            if now < self._paused_until:
                return
            self._paused_until = None
            self._poller.register(self.requests, zmq.POLLIN)
        yield from self._reader.messages(budget)

    def pause_requests(self, until: float) -> None:
        """Read no requests of clients for a while: they wait, and libzmq slows their senders down."""
        self._paused_until = until
        self._poller.unregister(self.requests)

    def watch(self, descriptor: int) -> None:
        """Let `poll` also return when a file descriptor is readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        self._poller.unregister(descriptor)

    def keep_room(self, now: float) -> None:
        """Let no more clients in while nearly all file descriptors are in use. now: monotonic seconds.

        Disconnect all clients if libzmq holds too much for them, or one of them sends a message without an end.
        """
        if not self._are_open:
            self._open_doors_again(now)
            return
        self._reserve.check(now)
        if self._guard.is_exceeded(now):
            self._disconnect_clients("libzmq holds too much memory for them", now)
        elif self._reader.is_stuck:
            self._disconnect_clients("one of them has sent a message of too many frames", now)

    def close(self) -> None:
        """Close the sockets. Waits up to one second for replies that libzmq has not sent yet."""
        self._doors.close()
        if self._curve is not None:
            self._curve.stop()
        self._context.destroy(linger=_LINGER_MS)

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        # TCP's keepalive is used instead of ZeroMQ's heartbeats: libzmq 4.3.5 aborts the process if a heartbeat is
        # due on a socket whose peer has left while more messages wait than the high-water mark allows.
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = _KEEPALIVE_S
        socket.tcp_keepalive_intvl = _KEEPALIVE_S // 3
        socket.tcp_keepalive_cnt = 3
        return socket

    def _open_requests(self) -> zmq.Socket[bytes]:
        socket = self._open(zmq.PULL)
        socket.maxmsgsize = _RECEIVED * self._max_message_bytes
        socket.rcvhwm = _UNREAD_REQUESTS
        self._reader = RequestReader(socket)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _open_doors(self) -> None:
        """Listen on the TCP ports. Raises PortInUse, OSError or ZMQError; then it may be called again."""
        try:
            doors = [self._bind(self.requests, self._port), self._bind(self.replies, self._port_out)]
            limit = max_open_files()
            self._reserve = DescriptorReserve(doors, size=reserve_for(self._num_children, limit), limit=limit)
        except BaseException:
            self._doors.close()
            raise
        self._doors.callback(self._reserve.close)
        self._are_open = True

    def _open_doors_again(self, now: float) -> None:
        try:
            self._open_doors()
        except (PortInUse, OSError, zmq.ZMQError) as exc:
            if now - self._closed_at > _LONG_S:  # libzmq closes the old listeners in its own thread
                self._sparse_log.warning("cannot listen for clients again: %s", exc)

    def _disconnect_clients(self, reason: str, now: float) -> None:
        """End all connections of clients, with all that libzmq holds for them. The clients connect again."""
        self._sparse_log.warning("disconnected all clients: %s", reason)
        self._doors.close()
        self._are_open, self._closed_at = False, now
        if self._paused_until is None:
            self._poller.unregister(self.requests)
        self._paused_until = None
        self.requests.close(linger=0)
        self.requests = self._open_requests()
        if self._curve is not None:
            self._curve.protect(self.requests)

    def _bind(self, socket: zmq.Socket[bytes], port: int) -> Door:
        """Listen on a port. Raises PortInUse."""
        host = self._host
        monitor = socket.get_monitor_socket(zmq.EVENT_LISTENING)  # it tells libzmq's descriptor
        try:
            socket.ipv6 = ":" in host
            socket.backlog = backlog_for(max_open_files())
            socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
            door = Door(recv_monitor_message(monitor)["value"])
            self._doors.callback(_unbind, socket, socket.get_string(zmq.LAST_ENDPOINT))
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EADDRINUSE:
                raise PortInUse(f"port {port} on {host} is in use") from exc
            raise PortInUse(f"cannot listen on {host} port {port}: {exc}") from exc
        finally:
            socket.disable_monitor()
        self._doors.callback(door.close)
        return door


def _unbind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    with suppress(zmq.ZMQError):  # raised if the socket is closed
        socket.unbind(endpoint)


def receive_frame(socket: zmq.Socket[bytes]) -> zmq.Frame | None:
    """Return the next frame, or None if there is no message now."""
    return socket.recv(NOBLOCK, copy=False) if int(socket.get(zmq.EVENTS)) & POLLIN else None


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
    """Return the next message, or None if there is no message now."""
    # Reading the events first costs less than the exception that an empty socket would raise.
    if not int(socket.get(zmq.EVENTS)) & POLLIN:
        return None
    try:
        return receive_frames(socket)
    except zmq.Again:
        return None


def send(socket: zmq.Socket[bytes], frames: Sequence[Frame | zmq.Frame]) -> None:
    """Send a message without waiting. Raises zmq.ZMQError, but only for the first frame.

    This is `send_multipart` without its checks, and with plain numbers as flags: both take longer than to send.
    """
    for frame in frames[:-1]:
        socket.send(frame, _MORE, copy=False)
    socket.send(frames[-1], NOBLOCK, copy=False)


def peer_of(frame: zmq.Frame) -> str:
    """Return the address that a frame came from; "unknown" if libzmq does not know it."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "unknown"


def connection_of(frame: zmq.Frame) -> int | None:
    """Return a number for the connection that a frame came from, or None if it is closed.

    The number is the inode of the socket. A file descriptor is not usable: a new connection may get the descriptor
    of an old one before libzmq reports the end of the old connection's subscriptions.
    """
    try:
        return os.fstat(int(frame.get(zmq.SRCFD))).st_ino
    except (zmq.ZMQError, OSError):  # libzmq created the message itself, or the descriptor is closed
        return None


def is_loopback(peer: str) -> bool:
    """Return whether the address, or the host name, is this machine's own. `localhost` is the only such name."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer == "localhost"
    # An IPv6 socket reports IPv4 peers as ::ffff:a.b.c.d. Older versions of Python, such as 3.11, do not know that
    # such an address may be a loopback address.
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
