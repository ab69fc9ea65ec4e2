"""The two sockets of a server without the server behind them, for tests of what clients send and notice."""

from __future__ import annotations

from collections.abc import Sequence

import zmq
from bert_serving.protocol import CommandRequest, EncodeRequest, request_from_frames
from zmq.auth.thread import ThreadAuthenticator

from tests.support.running_server import Ports
from tests.support.waiting import HANG_S


class BareServer:
    """A context manager with a PULL and an XPUB socket on free ports of this machine.

    secret: the server's secret key; None: no encryption. allowed: public keys of the clients that may connect.
    """

    def __init__(self, *, secret: bytes | None = None, allowed: Sequence[bytes] = ()) -> None:
        self._context = zmq.Context()
        self._allowed = allowed
        self._authenticator: ThreadAuthenticator | None = None
        self.requests, self.replies = self._context.socket(zmq.PULL), self._context.socket(zmq.XPUB)
        if secret is not None:
            self._protect(secret)
        self.port = self.requests.bind_to_random_port("tcp://127.0.0.1")
        self.port_out = self.replies.bind_to_random_port("tcp://127.0.0.1")

    def __enter__(self) -> BareServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)

    @property
    def ports(self) -> Ports:
        """The ports that the clients connect to."""
        return {"port": self.port, "port_out": self.port_out}

    def next_request(self) -> EncodeRequest | CommandRequest:
        """Wait for a request and return it."""
        assert self.requests.poll(HANG_S * 1000), "no request arrived"
        return request_from_frames(self.requests.recv_multipart())

    def callback(self, _domain: str, key: bytes) -> bool:
        """Return whether the client with this public key may connect. The authenticator calls it."""
        return key in self._allowed

    def _protect(self, secret: bytes) -> None:
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=self)
        for socket in (self.requests, self.replies):
            socket.curve_server, socket.curve_secretkey = 1, secret
