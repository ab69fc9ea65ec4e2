"""The folder of CURVE keys that bert-serving-keys makes. It never overwrites a file.

    DIR/server.key              the server's public key
    DIR/server.key_secret       the server's key pair; stays on the server
    DIR/clients/NAME.key        the public key of a client that may connect; stays on the server
    DIR/NAME/server.key         the server's public key, for this client
    DIR/NAME/client.key_secret  the client's key pair

DIR/NAME is moved to the client, which gets it as curve_dir.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from zmq.auth.certs import create_certificates

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_ONLY_OWNER = 0o077  # umask: folders get mode 0700, files get mode 0600


class KeyFolderError(Exception):
    """A key cannot be made; the message says why."""


class KeyFolder:
    """A folder with the keys of a server and of its clients."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)

    def make(self, names: Sequence[str]) -> list[str]:
        """Make the server's keys, if they are missing, and the clients' keys; return what to tell the user.

        Raises KeyFolderError or OSError. If a name is refused, nothing is made.
        """
        self._check(names)
        previous = os.umask(_ONLY_OWNER)
        try:
            lines = self._make_server()
            for name in names:
                self._make_client(name)
                lines.append(f"made {self._folder / name}: move this folder to the client")
        finally:
            os.umask(previous)
        return [*lines, *self._next_steps(names)]

    def _check(self, names: Sequence[str]) -> None:
        for i, name in enumerate(names):
            if not _NAME.fullmatch(name) or name == "clients":
                raise KeyFolderError(
                    f"a client's name must have 1 to 64 letters, digits, '_', '.' or '-', must not begin with '.' "
                    f"or '-', and must not be 'clients', got {name!r}"
                )
            if name in names[:i]:
                raise KeyFolderError(f"got the name {name!r} twice")
            for path in (self._folder / name, self._folder / "clients" / f"{name}.key"):
                if path.exists():
                    raise KeyFolderError(f"{path} exists; remove it, or choose another name")
        has = [(self._folder / file).exists() for file in ("server.key", "server.key_secret")]
        if any(has) and not all(has):
            raise KeyFolderError(f"{self._folder} has only one of server.key and server.key_secret")

    def _make_server(self) -> list[str]:
        (self._folder / "clients").mkdir(parents=True, exist_ok=True)
        if (self._folder / "server.key_secret").exists():
            return []
        create_certificates(self._folder, "server")
        return [f"made the server's keys in {self._folder}"]

    def _make_client(self, name: str) -> None:
        folder = self._folder / name
        folder.mkdir()
        shutil.copyfile(self._folder / "server.key", folder / "server.key")
        create_certificates(folder, "client")
        (folder / "client.key").rename(self._folder / "clients" / f"{name}.key")

    def _next_steps(self, names: Sequence[str]) -> list[str]:
        client = names[0] if names else "CLIENT"
        return [
            "next:",
            f"  bert-serving-start -curve_dir {self._folder} -host 0.0.0.0",
            f"  scp -r {self._folder / client} CLIENT_HOST:{client}",
            f'  BertClient("SERVER_HOST", curve_dir="{client}")',
            f"  bert-serving-status -ip SERVER_HOST -curve_dir {client}",
            "a running server reads new clients' keys after SIGHUP",
        ]
