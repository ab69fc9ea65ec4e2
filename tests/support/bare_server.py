"""The two sockets of a server without the server behind them, for tests of what clients send and notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import zmq
from bert_serving.protocol import (
    Command,
    CommandRequest,
    EncodeRequest,
    InfoReply,
    Reply,
    reply_to_frames,
    request_from_frames,
)
from zmq.auth.thread import ThreadAuthenticator

from tests.support.running_server import Ports
from tests.support.waiting import HANG_S

Answer = Callable[[EncodeRequest | CommandRequest], "Reply | None"]

_POLL_MS = 20


class BareServer:
    """A context manager with a PULL and an XPUB socket on free ports of this machine, served by a thread.

    It replies to SHOW_CONFIG, because a client sends nothing else before this reply, and it collects all other
    requests. answer: returns the reply to a collected request, or None. num_silent: this number of SHOW_CONFIG
    gets no reply. secret: the server's secret key; None: no encryption. allowed: public keys of the clients that
    may connect.
    """

    def __init__(
        self,
        answer: Answer = lambda _: None,
        *,
        num_silent: int = 0,
        secret: bytes | None = None,
        allowed: Sequence[bytes] = (),
    ) -> None:
        self.allowed = allowed
        self.num_configs = 0
        self._answer = answer
        self._num_silent = num_silent
        self._arrived: SimpleQueue[EncodeRequest | CommandRequest] = SimpleQueue()
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._requests, self._replies = self._context.socket(zmq.PULL), self._context.socket(zmq.XPUB)
        if secret is not None:
            self._protect(secret)
        self.port = self._requests.bind_to_random_port("tcp://127.0.0.1")
        self.port_out = self._replies.bind_to_random_port("tcp://127.0.0.1")
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> BareServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)

    @property
    def ports(self) -> Ports:
        """The ports that the clients connect to."""
        return {"port": self.port, "port_out": self.port_out}

    def next_request(self) -> EncodeRequest | CommandRequest:
        """Wait for a collected request and return it."""
        try:
            return self._arrived.get(timeout=HANG_S)
        except Empty:
            raise AssertionError("no request arrived") from None

    def callback(self, _domain: str, key: bytes) -> bool:
        """Return whether the client with this public key may connect. The authenticator calls it."""
        return key in self.allowed

    def _serve(self) -> None:
        while not self._is_stopping.is_set():
            if self._requests.poll(_POLL_MS):
                reply = self._reply_to(request_from_frames(self._requests.recv_multipart()))
                if reply is not None:
                    self._replies.send_multipart(reply_to_frames(reply))

    def _reply_to(self, request: EncodeRequest | CommandRequest) -> Reply | None:
        if isinstance(request, CommandRequest) and request.command is Command.SHOW_CONFIG:
            self.num_configs += 1
            if self.num_configs <= self._num_silent:
                return None
            return InfoReply(request.identity, request.request_id, {"server_version": "1.10.0"})
        self._arrived.put(request)
        return self._answer(request)

    def _protect(self, secret: bytes) -> None:
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=self)
        for socket in (self._requests, self._replies):
            socket.curve_server, socket.curve_secretkey = 1, secret
