"""CURVE encrypts ZeroMQ over TCP, and authenticates clients: the server's key pair, and who may connect.

    DIR/server.key_secret    the server's key pair
    DIR/clients/*.key        one public key for each client that may connect

libzmq asks for a decision about each new connection over ZAP (https://rfc.zeromq.org/spec/27). pyzmq's
authenticator decides in its own thread, so handshakes do not wait for the broker. An established connection stays
open when its key is removed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import zmq
from zmq.auth.certs import load_certificate, load_certificates

from .sparse_log import SparseLog

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

log = logging.getLogger(__name__)

_DOMAIN = "bert-serving"


class CurveError(Exception):
    """The keys cannot be used; the message is one line that names the file."""


class CurveServer:
    """Decides which clients may connect to sockets that `protect` was called for.

    folder: the keys. `start` must be called before the first of these sockets is bound, and `stop` before the
    context ends. The constructor and `start` raise CurveError.
    """

    def __init__(self, folder: Path) -> None:
        self._clients = folder / "clients"
        self._secret_key = _secret_key(folder / "server.key_secret")
        self._authenticator: ThreadAuthenticator | None = None
        self._public_keys = _public_keys(self._clients)
        self._sparse_log = SparseLog()  # only the authenticator's thread uses it

    def start(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Decide about connections to the sockets of this context."""
        from zmq.auth.thread import (
            ThreadAuthenticator,  # imported late: it loads asyncio, which nothing else needs
        )

        self._authenticator = ThreadAuthenticator(context, log=logging.getLogger("zmq.auth"))
        self._authenticator.configure_curve_callback(_DOMAIN, self)
        self._authenticator.start()
        log.info("CURVE is on clients=%d", len(self._public_keys))

    def callback(self, _domain: str, key: bytes) -> bool:
        """Return whether a client with this public key may connect. The authenticator calls it in its thread."""
        is_known = key in self._public_keys
        if not is_known:
            self._sparse_log.warning(
                "refused a connection: no file in clients/ has its public key %s", key.decode()
            )
        return is_known

    def stop(self) -> None:
        """Accept no more connections."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Require CURVE on the endpoints that the socket binds from now on."""
        socket.curve_server = 1
        socket.curve_secretkey = self._secret_key
        socket.zap_domain = _DOMAIN.encode()
        # Otherwise libzmq would accept every client while there is no authenticator.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def reload(self) -> None:
        """Read the clients' keys again. If one cannot be read, log it and keep the present keys."""
        try:
            self._public_keys = _public_keys(self._clients)  # one assignment, so the thread sees old or new
        except CurveError as exc:
            log.error("kept the present CURVE keys: %s", exc)
            return
        log.info("read the CURVE keys clients=%d", len(self._public_keys))


def _secret_key(path: Path) -> bytes:
    try:
        _, secret = load_certificate(path)
    except (OSError, ValueError) as exc:
        raise CurveError(f"cannot read {path}: {exc}; bert-serving-keys makes this file") from exc
    if secret is None:
        raise CurveError(f"{path} has no secret-key; bert-serving-keys makes this file")
    return secret


def _public_keys(folder: Path) -> dict[bytes, bool]:
    try:
        return load_certificates(folder)
    except (OSError, ValueError) as exc:
        raise CurveError(f"cannot read the clients' keys in {folder}: {exc}") from exc
