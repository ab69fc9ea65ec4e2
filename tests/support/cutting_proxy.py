"""A TCP proxy that can discard what clients send, and close its connections."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.support.waiting import wait_until


class Proxy:
    """A context manager that listens on `port` and forwards everything to `target_port`.

    is_discarding: whether the proxy discards what clients send. num_discarded: the number of discarded bytes.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.is_discarding = False
        self.num_discarded = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def lose(self, num_bytes: int) -> None:
        """Wait until at least num_bytes bytes were discarded, close all connections, and stop discarding."""
        wait_until(lambda: self.num_discarded >= num_bytes, f"fewer than {num_bytes} bytes were sent")
        self.cut()
        self.is_discarding, self.num_discarded = False, 0

    def cut(self) -> None:
        """Close all current connections, both to the clients and to the server."""
        while self._connections:
            with suppress(OSError):
                self._connections.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target_port))
                self._connections += [client, server]
                threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.is_discarding and target.getpeername()[1] == self._target_port:
                    self.num_discarded += len(data)
                else:
                    target.sendall(data)
        source.close()
