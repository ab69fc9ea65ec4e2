"""What the examples share: the ports of a server, and sentences from the manual that comes with Python."""

from __future__ import annotations

import argparse
import re
import socket
from pydoc_data.topics import topics
from typing import TypedDict


class Ports(TypedDict):
    """The ports of a server, as arguments of BertClient."""

    port: int
    port_out: int


def ports(description: str | None) -> Ports:
    """Return the ports that are given on the command line, or the default ports."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-port", type=int, default=5555)
    parser.add_argument("-port_out", type=int, default=5556)
    args = parser.parse_args()
    return {"port": args.port, "port_out": args.port_out}


def free_ports() -> tuple[int, int]:
    """Return two unused ports, for a server that an example starts."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def python_sentences() -> list[str]:
    """Return about 3,000 sentences of Python's manual."""
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    return [s.strip() for s in re.split(r"(?<=[.!?]) ", text) if 20 <= len(s) <= 300]
