"""bert-serving-keys: make the keys with which clients and server encrypt ZeroMQ."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Make the keys. Returns the exit code: 0, or 1 after one line that says what failed."""
    import argparse

    from .key_folder import KeyFolder, KeyFolderError

    parser = argparse.ArgumentParser(
        prog="bert-serving-keys",
        description="Make the server's key pair, if there is none, and a key pair for each client.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of the keys; the server gets it as -curve_dir")
    parser.add_argument("clients", metavar="CLIENT", nargs="*", help="name of a client that may connect")
    args = parser.parse_args(argv)
    try:
        lines = KeyFolder(args.folder).make(args.clients)
    except (KeyFolderError, OSError) as exc:
        sys.stderr.write(f"bert-serving-keys: {exc}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0
