"""Bad conditions for a server: a full disk, too many connections for its descriptors, a wall clock that jumps."""

from __future__ import annotations

import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.hostile.target import Target
from tests.support.processes import run

_SMALL_DISK = "BERT_SERVING_TEST_SMALL_DISK"
_DISK_MB = 8
_JUMP_EVERY_S = 0.5
_MAX_JUMP_H = 48


def enter_small_disk() -> None:
    """Run this program again in a mount namespace in which temporary files are on a disk of a few MB.

    Returns in the new program. Needs user namespaces, but no root. /var/tmp becomes the small disk: it exists on
    every machine, and these tests do not use it otherwise.
    """
    if _SMALL_DISK in os.environ:
        return
    mount = f'mount -t tmpfs -o size={_DISK_MB}m none /var/tmp && exec "$0" "$@"'
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
    env = {**os.environ, _SMALL_DISK: "1", "TMPDIR": "/var/tmp"}
    os.execvpe("unshare", [*unshare, *sys.orig_argv], env)


@contextmanager
def filled_disk() -> Iterator[None]:
    """Write a file until the disk for temporary files is full; remove the file at the end."""
    path = Path(tempfile.gettempdir()) / "filling"
    try:
        with suppress(OSError), path.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        yield
    finally:
        path.unlink()


def receive_crowd(target: Target, count: int, seconds: float) -> None:
    """Hold this many idle connections to each port of the server for a while. Some are refused or must wait."""
    with ExitStack() as stack:
        for port in (target.port, target.port_out, target.http_port):
            for _ in range(count):
                client = stack.enter_context(socket.socket())
                client.bind(("127.0.0.2", 0))
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))  # the system goes on trying
                time.sleep(0.002)  # else the short queue of the port is full, and the system waits a second
        time.sleep(seconds)


class JumpingClock:
    """Lets the wall clock of programs with `env` jump inside its context. Their monotonic clock does not jump.

    If libfaketime is not installed, Debian's package is downloaded and unpacked into a temporary folder.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._offset = Path(self._folder.name) / "offset"
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._jump)
        self.env: dict[str, str] = {}

    def __enter__(self) -> JumpingClock:
        self._offset.write_text("+0")
        self.env = {
            "LD_PRELOAD": str(_find_libfaketime(Path(self._folder.name))),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._should_stop.set()
        self._thread.join()
        self._folder.cleanup()

    def _jump(self) -> None:
        rng = random.Random(0)
        new = self._offset.with_suffix(".new")
        while not self._should_stop.wait(_JUMP_EVERY_S):
            new.write_text(f"{rng.uniform(-_MAX_JUMP_H, _MAX_JUMP_H):+.2f}h")
            new.replace(self._offset)  # a reader never sees half a file


def _find_libfaketime(folder: Path) -> Path:
    """Return the path of the library for programs with several threads."""
    name = "faketime/libfaketimeMT.so.1"
    installed = sorted(Path("/usr/lib").glob(f"*/{name}"))
    if not installed:
        run("apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", "libfaketime", cwd=folder)
        run("dpkg-deb", "-x", next(folder.glob("libfaketime_*.deb")), folder)
        installed = sorted(folder.glob(f"usr/lib/*/{name}"))
    return installed[0]
