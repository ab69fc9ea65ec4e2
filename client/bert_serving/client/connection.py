"""The two sockets of a client and what is known of their peers. Non-blocking; for one thread at a time."""

from __future__ import annotations

import zmq
from bert_serving.protocol import Frames
from zmq.utils.monitor import recv_monitor_message

_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000
_RECONNECT_MAX_MS = 1_000

_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Connection:
    """PUSH to `ip:port`, SUB from `ip:port_out`, both connecting in the background.

    num_losses: how often the line broke after it had been whole; requests sent before are lost with it.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], identity: bytes, ip: str, port: int, port_out: int
    ):
        self.num_losses = 0
        self._failures: dict[str, str] = {}
        self._sender = self._open(context, zmq.PUSH)
        # A request is handed to a live connection or not at all: it must not surface after a restart.
        self._sender.immediate = 1
        self._receiver = self._open(context, zmq.SUB)
        self._receiver.rcvhwm = 0
        self._receiver.subscribe(identity)
        for socket in (self._sender, self._receiver):
            socket.ipv6 = ":" in ip
        host = f"[{ip}]" if ":" in ip else ip
        self._peers = {
            f"{host}:{port}": (self._sender, self._sender.get_monitor_socket(_EVENTS)),
            f"{host}:{port_out}": (self._receiver, self._receiver.get_monitor_socket(_EVENTS)),
        }
        self._connected: set[str] = set()
        for address, (socket, _) in self._peers.items():
            socket.connect(f"tcp://{address}")

    @property
    def is_connected(self) -> bool:
        """Whether both sockets have shaken hands with a ZeroMQ peer."""
        return len(self._connected) == len(self._peers)

    @property
    def trouble(self) -> str:
        """What keeps the line from being whole, for an error message."""
        missing = [address for address in self._peers if address not in self._connected]
        reasons = [f"{address} ({self._failures.get(address, 'nobody answers')})" for address in missing]
        return ", ".join(reasons)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The sockets to poll for input before `receive`."""
        return [self._receiver, *(monitor for _, monitor in self._peers.values())]

    def send(self, frames: Frames) -> bool:
        """Hand a request to the line; return False if it has no room or no peer now."""
        try:
            self._sender.send_multipart([bytes(frame) for frame in frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[Frames]:
        """Return the messages that are here, and note what the monitors say of the peers."""
        for address, (_, monitor) in self._peers.items():
            while _has_input(monitor):
                self._note(address, recv_monitor_message(monitor)["event"])
        messages: list[Frames] = []
        while _has_input(self._receiver):
            messages.append(list(self._receiver.recv_multipart(zmq.NOBLOCK)))
        return messages

    def close(self) -> None:
        """Drop the line; nothing that is still inside leaves."""
        for socket, monitor in self._peers.values():
            socket.disable_monitor()
            monitor.close(linger=0)
            socket.close(linger=0)

    def _note(self, address: str, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected.add(address)
        elif event == zmq.EVENT_DISCONNECTED:
            if address in self._connected:
                self.num_losses += 1
                self._failures[address] = "the connection broke"
            else:
                self._failures[address] = "what answers is not this service; are port and port_out right?"
            self._connected.discard(address)

    @staticmethod
    def _open(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.linger = 0
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        socket.tcp_keepalive = 1
        return socket


def _has_input(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
