"""Two hosts with a line between them, made of network namespaces. On many systems, every user may make them.

Processes on the hosts share files and process ids with the tests, but not the network: even loopback is their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.support.processes import run
from tests.support.waiting import wait_until

SERVER_IP, CLIENT_IP = "10.91.0.1", "10.91.0.2"


def are_permitted() -> bool:
    """Return whether this process may make network namespaces and lines between them."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    command = "unshare -Urn ip link add name a type veth peer name b"
    return subprocess.run(command.split(), capture_output=True, check=False).returncode == 0


class TwoHosts:
    """A context manager. server, client: the prefixes of commands that run on the two hosts."""

    def __init__(self) -> None:
        self._processes = ExitStack()

    def __enter__(self) -> TwoHosts:
        first = self._hold(["unshare", "-Urn"], os.getpid())
        self.server = _enter(first)
        second = self._hold([*self.server, "unshare", "-n"], first)
        self.client = _enter(second)
        self._ip(self.server, f"link add name line type veth peer name line netns {second}")
        for prefix, address in ((self.server, SERVER_IP), (self.client, CLIENT_IP)):
            self._ip(prefix, f"address add {address}/24 dev line")
            self._ip(prefix, "link set dev lo up")
            self._ip(prefix, "link set dev line up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.close()

    def cut_line(self) -> None:
        """Let everything that the hosts send to each other be lost. Their connections stay open."""
        self._ip(self.server, "link set dev line down")

    def mend_line(self) -> None:
        """Undo `cut_line`."""
        self._ip(self.server, "link set dev line up")

    def _ip(self, prefix: list[str], arguments: str) -> None:
        run(*prefix, "ip", *arguments.split())

    def _hold(self, command: list[str], parent: int) -> int:
        """Start a process that keeps a new namespace open; return its id."""
        process = self._processes.enter_context(subprocess.Popen([*command, "sleep", "infinity"]))
        self._processes.callback(process.kill)
        wait_until(lambda: _network_of(process.pid) not in (_network_of(parent), _network_of(os.getpid())))
        # Before the ids are mapped, a process that enters the user namespace loses its rights in it.
        wait_until((Path("/proc") / str(process.pid) / "uid_map").read_text)
        return process.pid


def _enter(pid: int) -> list[str]:
    return ["nsenter", "-t", str(pid), "-U", "-n", "--preserve-credentials"]


def _network_of(pid: int) -> str:
    return os.readlink(Path("/proc") / str(pid) / "ns" / "net")
