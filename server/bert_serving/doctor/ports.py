"""Which of the server's ports are free, and who has the others."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

import psutil


def taken_by(host: str, port: int) -> str | None:
    """Return who listens on a port, or None if a server could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as exc:
            return _listener(port) or exc.strerror or str(exc)
    return None


def _listener(port: int) -> str | None:
    """Return the process that listens on a port, if this user may see it."""
    with suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and getattr(found.laddr, "port", None) == port and found.pid:
                return _named(found.pid)
    return None


def _named(pid: int) -> str:
    try:
        words: Iterable[str] = psutil.Process(pid).cmdline()
    except psutil.Error:
        return f"process {pid}"
    return f"process {pid}, {' '.join(words)[:80]}"
