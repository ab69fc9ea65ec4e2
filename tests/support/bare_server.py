"""The two sockets of a server without the server behind them, for tests of what clients send and notice."""

from __future__ import annotations

import zmq
import zmq.auth
from bert_serving.client.address import CurveKeys

from tests.support.waiting import HANG_S


class BareServer:
    """A context manager with a PULL and an XPUB socket on free ports of this machine.

    secret: the server's secret key; None: no encryption. allowed: public keys of the clients that may connect.
    """

    def __init__(self, secret: bytes | None = None, allowed: tuple[bytes, ...] = ()) -> None:
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._allowed = allowed
        self.requests, self.replies = self._context.socket(zmq.PULL), self._context.socket(zmq.XPUB)
        if secret is not None:
            self._zap.bind("inproc://zeromq.zap.01")
            for socket in (self.requests, self.replies):
                socket.curve_server, socket.curve_secretkey = 1, secret
        self.port = self.requests.bind_to_random_port("tcp://127.0.0.1")
        self.port_out = self.replies.bind_to_random_port("tcp://127.0.0.1")

    def __enter__(self) -> BareServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)
