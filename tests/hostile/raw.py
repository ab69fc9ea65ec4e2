"""A ZeroMQ client without checks, for messages that our clients would never send."""

from __future__ import annotations

import socket
import struct
import uuid
from collections.abc import Iterator, Sequence

import zmq

from tests.hostile.target import Target

_SEND_TIMEOUT_MS = 200
_TIMEOUT_S = 5.0
_SUBSCRIBE_S = 0.2  # a subscription needs about a millisecond to arrive; a late one costs only the first replies


def shaken_hands(port: int, kind: bytes) -> socket.socket:
    """Return a TCP connection after ZeroMQ's handshake, for bytes that libzmq would never send. kind: PUSH or SUB.

    ZMTP 3.0 (https://rfc.zeromq.org/spec/23): a greeting, then the command READY.
    """
    connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
    greeting = bytes.fromhex("ff00000000000000017f0300") + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\5READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    connection.sendall(greeting + b"\4" + bytes([len(ready)]) + ready)
    _, length = _receive(connection, len(greeting) + 2)[-2:]
    _receive(connection, length)  # before the server's READY, messages would be an error
    return connection


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += (piece := connection.recv(count - len(received)))
        if not piece:
            raise ConnectionError("the server closed the connection in the handshake")
    return received


class RawClient:
    """A PUSH socket, and a SUB socket that is subscribed to `identity`. One thread.

    reads: False makes the SUB socket take only a few replies off the connection, so that the server must keep the
    others. If the server does not read for _SEND_TIMEOUT_MS, the client drops the message: its memory is bounded.
    """

    def __init__(self, target: Target, identity: bytes | None = None, *, reads: bool = True) -> None:
        self.identity = identity or str(uuid.uuid4()).encode()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._push.sndtimeo = _SEND_TIMEOUT_MS
        self._push.connect(f"tcp://127.0.0.1:{target.port}")
        self._sub = self._context.socket(zmq.SUB)
        if not reads:
            self._sub.rcvhwm, self._sub.rcvbuf = 1, 4096
        self._sub.subscribe(self.identity)
        self._sub.connect(f"tcp://127.0.0.1:{target.port_out}")
        self._sub.poll(round(_SUBSCRIBE_S * 1000))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, body: bytes, num_texts: int, request_id: int = 2, *, identity: bytes | None = None) -> bool:
        """Send a request; return whether the socket accepted it."""
        return self.send([identity or self.identity, body, b"%d" % request_id, b"%d" % num_texts])

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send any frames; return whether the socket accepted them."""
        try:
            self._push.send_multipart(frames)
        except zmq.Again:
            return False
        return True

    def subscribe(self, identity: bytes) -> None:
        """Subscribe to one more identity."""
        self._sub.subscribe(identity)

    def replies(self, wait_s: float = 0.0) -> Iterator[list[bytes]]:
        """Yield the messages that have arrived. Waits for the first one."""
        if self._sub.poll(round(wait_s * 1000)):
            while self._sub.poll(0):
                yield self._sub.recv_multipart()

    def close(self) -> None:
        """Close the sockets at once. Messages that were not sent yet are dropped."""
        self._context.destroy(linger=0)
