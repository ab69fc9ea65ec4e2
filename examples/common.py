"""What the examples share: where a server listens, and sentences that every Python has on board."""

from __future__ import annotations

import argparse
import re
import socket
from pydoc_data.topics import topics


def ports(description: str | None) -> dict[str, int]:
    """Return the ports that the command line names, as BertClient takes them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-port", type=int, default=5555)
    parser.add_argument("-port_out", type=int, default=5556)
    return vars(parser.parse_args())


def free_ports() -> tuple[int, int]:
    """Return two ports that nobody listens on, for a server of one's own."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def python_sentences() -> list[str]:
    """Return some thousand sentences of Python's manual."""
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    return [s.strip() for s in re.split(r"(?<=[.!?]) ", text) if 20 <= len(s) <= 300]
