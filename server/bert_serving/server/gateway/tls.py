"""TLS in front of the HTTP connections, with their limits.

asyncio can do all of this (`create_server(ssl=...)`), but then a connection would count only after its handshake:
callers that never finish it could use up the file descriptors. Also, asyncio's TLS transport passes its bytes to
the TCP transport at once. So it does not tell how much of a response the caller has still to read.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio import sslproto
from collections.abc import Iterable
from socket import AF_UNIX
from typing import TYPE_CHECKING, Any

from ..tls import CertificateSource

if TYPE_CHECKING:
    from .http_protocol import ConnectionPool, LimitedConnection

# asyncio gives each TLS connection a buffer of 256 KiB: 1 GiB for 4,096 connections.
_READ_BUFFER_BYTES = 32 << 10
# asyncio ends a connection 30 s after it was closed, even if the caller still reads its response.
# LimitedConnection.check ends connections whose callers do nothing, so asyncio need not.
_SHUTDOWN_S = 86_400.0

log = logging.getLogger(__name__)


class Tls:
    """The certificate that new connections get. context: replaced when the certificate is read again."""

    def __init__(self, source: CertificateSource) -> None:
        self._source = source
        self.context: ssl.SSLContext = source.new_context()
        sslproto.SSLProtocol.max_size = _READ_BUFFER_BYTES

    def reload(self) -> None:
        """Read the certificate again. If it has an error, log it and keep the present one."""
        if self._source.reload():
            self.context = self._source.new_context()


class TlsHandshake(asyncio.Protocol):
    """A new connection until its TLS handshake has ended. It has a place in the pool, like any other connection.

    connection: continues after the handshake. A caller on a UNIX socket uses no TLS.
    """

    def __init__(self, pool: ConnectionPool, tls: Tls, connection: LimitedConnection) -> None:
        self._pool = pool
        self._tls = tls
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None  # a task needs a reference as long as it runs

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the handshake, unless there are too many connections."""
        if transport.get_extra_info("socket").family == AF_UNIX:
            transport.set_protocol(self._connection)
            self._connection.connection_made(transport)
            return
        self._transport = transport
        self._pool.connections.add(self)
        self._connection.connections.add(self)  # type: ignore[arg-type]  # uvicorn only calls `shutdown`
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(self._pool.admit(self)))

    def check(self, now: float) -> None:
        """Do nothing: start_tls has a time limit."""

    def drop(self, reason: str) -> None:
        """Close the connection at once."""
        log.debug("TLS handshake dropped: %s", reason)
        self._pool.waiting.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def shutdown(self) -> None:
        """Close the connection, because the server stops. uvicorn calls this method."""
        self.drop("the server stops")

    async def _shake_hands(self, timeout_s: float) -> None:
        """Do the handshake, and continue with HTTP."""
        assert self._transport is not None
        first, encrypted = FirstBytes(), None
        try:
            if not self._transport.is_closing():
                encrypted = await asyncio.get_running_loop().start_tls(
                    self._transport,
                    first,
                    self._tls.context,
                    server_side=True,
                    ssl_handshake_timeout=timeout_s,
                    ssl_shutdown_timeout=_SHUTDOWN_S,
                )
        except OSError as exc:  # also of ssl, and after the timeout
            log.debug("TLS handshake failed: %s", exc)
        finally:
            self._pool.connections.discard(self)
            self._pool.waiting.pop(self, None)
            self._connection.connections.discard(self)
        if encrypted is not None:  # it is None if the connection was lost
            encrypted.set_protocol(self._connection)
            self._connection.connection_made(TlsTransport(encrypted, self._transport))
            if first.received:
                self._connection.data_received(first.received)


class FirstBytes(asyncio.Protocol):
    """Keeps what arrives together with the end of the handshake, decrypted.

    It is a class of its own, so that bytes that were never encrypted cannot get here.
    """

    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """Keep these bytes, too."""
        self.received += data


class TlsTransport(asyncio.Transport):
    """asyncio's TLS transport, with two differences.

    It knows how many bytes the caller has still to read: those of the TCP transport count, too. And it may be
    closed twice: uvicorn does this, and asyncio's transport cannot be used after that.
    """

    def __init__(self, encrypted: asyncio.Transport, tcp: asyncio.Transport) -> None:
        super().__init__()
        self._encrypted = encrypted
        self._tcp = tcp

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that were not passed to the system yet."""
        return self._encrypted.get_write_buffer_size() + self._tcp.get_write_buffer_size()

    def close(self) -> None:
        """Close the connection when the caller has read everything."""
        if not self.is_closing():
            self._encrypted.close()

    def is_closing(self) -> bool:
        """See asyncio.Transport, as for all other methods."""
        return self._encrypted.is_closing()

    def abort(self) -> None:  # noqa: D102
        self._encrypted.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: D102
        return self._encrypted.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:  # noqa: D102
        self._encrypted.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:  # noqa: D102
        self._encrypted.writelines(list_of_data)

    def can_write_eof(self) -> bool:  # noqa: D102
        return False

    def pause_reading(self) -> None:  # noqa: D102
        self._encrypted.pause_reading()

    def resume_reading(self) -> None:  # noqa: D102
        self._encrypted.resume_reading()
