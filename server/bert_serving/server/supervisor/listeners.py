"""The sockets on which the gateways accept HTTP: a TCP port, a UNIX socket, or both.

The server opens them once, and each gateway process gets them. They stay open when gateways restart, so no client
is refused.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ..broker.ports import PortInUse
from ..settings import Settings

_BACKLOG = 2048


def http_listeners(settings: Settings) -> list[str]:
    """Return where the server listens for HTTP, in words."""
    tls = "" if settings.tls_cert is None else " with TLS"
    port = [] if settings.http_port is None else [f"{settings.http_address} port {settings.http_port}{tls}"]
    return port if settings.http_socket is None else [*port, settings.http_socket]


def open_listeners(settings: Settings, resources: ExitStack) -> list[socket.socket]:
    """Open the sockets; `resources` will close them. Raises PortInUse."""
    opened = []
    if settings.http_port is not None:
        opened.append(resources.enter_context(listen(settings.http_address, settings.http_port)))
    if settings.http_socket is not None:
        opened.append(resources.enter_context(listen_unix(settings.http_socket)))
    return opened


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a TCP port. Raises PortInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is given explicitly, because otherwise asyncio does not turn off Nagle's algorithm. With this
    # algorithm, a small response takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("" if host == "*" else host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise PortInUse(f"cannot listen on {host} port {port} (http_port): {exc.strerror}") from exc
    return listener


@contextmanager
def listen_unix(path: str) -> Iterator[socket.socket]:
    """Listen on a UNIX socket, and remove its file at the end. Raises PortInUse.

    A file that a killed server has left behind is replaced. Who may write to the file may connect: this is the
    user, and whom the umask allows.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _remove_stale(path)
            listener.bind(path)
            listener.listen(_BACKLOG)
        except OSError as exc:  # it has no number if the path is too long
            raise PortInUse(f"cannot listen on {path} (http_socket): {exc.strerror or exc}") from exc
        own = os.stat(path)
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(os.stat(path), own):  # otherwise another program has replaced it
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove a UNIX socket on which no program listens. Raises PortInUse if there is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PortInUse(f"cannot listen on {path} (http_socket): there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # a program listens, but accepts no connections now
            pass
    raise PortInUse(f"cannot listen on {path} (http_socket): it is in use by another program")
