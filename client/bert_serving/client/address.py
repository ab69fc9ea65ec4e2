"""Address: where a server is, and the keys that encrypt the connection to it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth

#: The folder with the keys of all clients that get no `curve_dir`. The server's variable BERT_SERVING_CURVE_DIR
#: names another folder, and a process may have both.
CURVE_DIR_VARIABLE = "BERT_SERVING_CLIENT_CURVE_DIR"

_SERVER_FILE, _CLIENT_FILE = "server.key", "client.key_secret"
_KEY_CHARS = 40  # a key has 32 bytes, which are written as 40 characters (ZeroMQ RFC 32, Z85)


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """The keys for CURVE, the encryption of ZeroMQ (RFC 26): Z85 text of 40 characters each.

    server: the server's public key. public, secret: the key pair of this client.
    """

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CurveKeys:
        """Return the keys in a folder: the server's certificate `server.key`, and our own `client.key_secret`.

        Raises FileNotFoundError if a file is missing, ValueError if it has no key, and RuntimeError if the
        installed libzmq has no CURVE.
        """
        if not zmq.has("curve"):
            raise RuntimeError(
                "curve_dir needs a libzmq with CURVE; the one that pyzmq uses here was built without"
            )
        server, _ = _load_certificate(Path(folder) / _SERVER_FILE)
        public, secret = _load_certificate(Path(folder) / _CLIENT_FILE)
        if secret is None:
            raise ValueError(f"{Path(folder) / _CLIENT_FILE} must have a secret-key of {_KEY_CHARS} characters")
        return cls(server, public, secret)

    def apply_to(self, socket: zmq.Socket[bytes]) -> None:
        """Encrypt the connections that the socket opens from now on."""
        socket.curve_serverkey = self.server
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret


@dataclass(frozen=True, slots=True)
class Address:
    """The endpoints of a server, as ZeroMQ writes them, and the keys for them.

    requests: where requests go. replies: where replies come from. curve: None if the connection is not encrypted.
    """

    requests: str
    replies: str
    curve: CurveKeys | None = None

    @classmethod
    def tcp(cls, ip: str, port: int, port_out: int, curve: CurveKeys | None = None) -> Address:
        """Return the address of the server on a host, which may be a name, an IPv4 or an IPv6 address."""
        host = f"[{ip}]" if ":" in ip else ip
        return cls(f"tcp://{host}:{port}", f"tcp://{host}:{port_out}", curve)

    @property
    def requests_name(self) -> str:
        """The endpoint for requests in messages for people: host:port for TCP."""
        return self.requests.removeprefix("tcp://")

    @property
    def replies_name(self) -> str:
        """The endpoint for replies in messages for people: host:port for TCP."""
        return self.replies.removeprefix("tcp://")

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return self.requests.startswith("tcp://[")


def curve_keys(curve_dir: str | os.PathLike[str] | None) -> CurveKeys | None:
    """Return the keys in the folder; without a folder, those in $BERT_SERVING_CLIENT_CURVE_DIR; else None."""
    folder = curve_dir or os.environ.get(CURVE_DIR_VARIABLE)
    return CurveKeys.load(folder) if folder else None


def _load_certificate(path: Path) -> tuple[bytes, bytes | None]:
    if not path.is_file():
        raise FileNotFoundError(
            f"curve_dir must have the files {_SERVER_FILE} (the server's public key) and {_CLIENT_FILE} (the key "
            f"pair of this client), which bert-serving-keys makes; there is no {path}"
        )
    public, secret = zmq.auth.load_certificate(path)
    for key in (public, secret):
        if key is not None and len(key) != _KEY_CHARS:
            raise ValueError(f"{path} must have keys of {_KEY_CHARS} characters, got one of {len(key)}")
    return public, secret
