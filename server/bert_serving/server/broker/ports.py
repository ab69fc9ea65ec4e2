"""The broker's sockets: opened, bound and limited here, and nothing decided.

    requests   PULL     from clients
    replies    XPUB     to clients, in manual mode: a subscription counts when the outbox has seen it
    workers    ROUTER   on a private ipc path

Every receive and send is non-blocking.
"""

from __future__ import annotations

import ipaddress
import os

import zmq
from bert_serving.protocol import MAX_IDENTITY_BYTES, Frames

# Behind the command name SUBSCRIBE. libzmq keeps a node for every byte of every subscription.
_MAX_SUBSCRIPTION_BYTES = 16 + MAX_IDENTITY_BYTES
_REPLIES_IN_PIPE = 16  # for each client inside libzmq; what is beyond waits in the outbox, counted in bytes
_KEEPALIVE_S = 30  # a peer that is silent for so long is asked, and gone if it does not answer three times
_LINGER_MS = 1_000


class PortInUse(Exception):
    """A port cannot be listened on; the message says which and why."""


class Ports:
    """Opens the sockets; raises PortInUse and leaves nothing open if one of them cannot be bound.

    max_message_bytes: libzmq cuts the connection of a client that sends more.
    """

    def __init__(
        self, *, host: str, port: int, port_out: int, worker_endpoint: str, max_message_bytes: int
    ) -> None:
        self._context = zmq.Context()
        self.requests = self._open(zmq.PULL)
        self.requests.maxmsgsize = max_message_bytes
        self.replies = self._open(zmq.XPUB)
        self.replies.maxmsgsize = _MAX_SUBSCRIPTION_BYTES
        self.replies.xpub_manual = 1
        self.replies.xpub_nodrop = 1
        self.replies.sndhwm = _REPLIES_IN_PIPE
        self.workers = self._open(zmq.ROUTER)
        self.workers.router_mandatory = 1
        self.workers.sndhwm = 0  # two batches a worker at most, so nothing piles up
        self.poller = zmq.Poller()
        for socket in (self.requests, self.replies, self.workers):
            self.poller.register(socket, zmq.POLLIN)
        try:
            _bind(self.requests, host, port)
            _bind(self.replies, host, port_out)
            self.workers.bind(worker_endpoint)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets; what libzmq still holds for clients gets a second to leave."""
        self._context.destroy(linger=_LINGER_MS)

    def reply(self, frames: Frames) -> bool:
        """Publish a reply; return False where the pipe of a subscriber is full."""
        try:
            self.replies.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        # TCP's own, not ZeroMQ's heartbeats: libzmq 4.3.5 aborts the process when one is due on a socket
        # whose peer has left while more than its high-water mark of messages waits.
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = _KEEPALIVE_S
        socket.tcp_keepalive_intvl = _KEEPALIVE_S // 3
        socket.tcp_keepalive_cnt = 3
        return socket


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
    """Return the next message, or None if there is none now."""
    try:
        return socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None


def peer_of(frame: zmq.Frame) -> str:
    """Return the address that a frame came from, as far as libzmq knows it."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "unknown"


def connection_of(frame: zmq.Frame) -> int | None:
    """Return a number for the connection that a frame came from, or None if it is gone.

    It is the inode of the socket: a file descriptor is soon another connection's, while the end of the
    first one's subscriptions is still on its way.
    """
    try:
        return os.fstat(int(frame.get(zmq.SRCFD))).st_ino
    except (zmq.ZMQError, OSError):  # libzmq made the message itself; the descriptor is closed
        return None


def is_loopback(peer: str) -> bool:
    """Return whether the address is this machine's own."""
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


def _bind(socket: zmq.Socket[bytes], host: str, port: int) -> None:
    try:
        socket.ipv6 = ":" in host
        socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
    except zmq.ZMQError as exc:
        if exc.errno == zmq.EADDRINUSE:
            raise PortInUse(f"port {port} on {host} is in use") from exc
        raise PortInUse(f"cannot listen on {host} port {port}: {exc}") from exc
