"""The server under attack: its addresses, and its processes as /proc shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.running_server import Ports, RunningServer, is_alive

MB = 1 << 20

_LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp


@dataclass(frozen=True)
class Target:
    """The ports of a server on this machine, and the process id of the server. Other processes may receive it."""

    port: int
    port_out: int
    http_port: int
    pid: int

    @classmethod
    def of(cls, server: RunningServer) -> Target:
        """Return the target for a running server."""
        return cls(server.port, server.port_out, server.http_port, server.process.pid)

    @property
    def ports(self) -> Ports:
        """The ports that the clients connect to."""
        return {"port": self.port, "port_out": self.port_out}

    @property
    def url(self) -> str:
        """The address of the HTTP port."""
        return f"http://127.0.0.1:{self.http_port}"


class Family:
    """The processes of a server.

    A gateway has the listening HTTP socket from the moment when it is spawned; a worker never has it. So they can
    be told apart even while they start.
    """

    def __init__(self, target: Target) -> None:
        self.server = psutil.Process(target.pid)
        self._listening = _listening_socket(target.http_port)

    @property
    def workers(self) -> list[psutil.Process]:
        """The worker processes that exist now, starting ones too."""
        return [child for child in self._children() if not self._is_gateway(child)]

    @property
    def gateways(self) -> list[psutil.Process]:
        """The gateway processes that exist now, starting ones too."""
        return [child for child in self._children() if self._is_gateway(child)]

    def members(self) -> dict[str, psutil.Process]:
        """Return the server, its workers and its gateways, by a name for tables."""
        workers = {f"worker {i}": child for i, child in enumerate(self.workers)}
        gateways = {f"gateway {i}": child for i, child in enumerate(self.gateways)}
        return {"server": self.server, **workers, **gateways}

    def server_mb(self) -> float:
        """Return the resident memory of the server process in MiB."""
        return float(self.server.memory_info().rss) / MB

    def memory_mb(self) -> float:
        """Return the resident memory of the server process and its gateways in MiB."""
        return self.server_mb() + sum(rss_mb(gateway) for gateway in self.gateways)

    def _children(self) -> Iterator[psutil.Process]:
        """Yield the children that multiprocessing has spawned. Its resource tracker is not one of them."""
        for child in self.server.children():
            with suppress(psutil.NoSuchProcess):
                if is_alive(child) and "spawn_main" in " ".join(child.cmdline()):
                    yield child

    def _is_gateway(self, process: psutil.Process) -> bool:
        return self._listening in _open_files(process.pid)


def rss_mb(process: psutil.Process) -> float:
    """Return the resident memory of a process in MiB; 0 if the process has ended."""
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_info().rss) / MB
    return 0.0


def _listening_socket(port: int) -> str:
    """Return the link that /proc/PID/fd shows for the socket that listens on this port of IPv4."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS and int(fields[1].partition(":")[2], 16) == port:
            return f"socket:[{fields[9]}]"
    raise AssertionError(f"nothing listens on port {port}")


def _open_files(pid: int) -> set[str]:
    links = set()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                links.add(str(path.readlink()))
    return links
