"""What the examples share: where the server listens, and sentences that every Python has on board."""

from __future__ import annotations

import argparse
import re
from pydoc_data.topics import topics


def ports(description: str | None) -> dict[str, int]:
    """Return the ports that the command line names, as BertClient takes them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-port", type=int, default=5555)
    parser.add_argument("-port_out", type=int, default=5556)
    return vars(parser.parse_args())


def python_sentences() -> list[str]:
    """Return some thousand sentences of Python's manual."""
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    return [s.strip() for s in re.split(r"(?<=[.!?]) ", text) if 20 <= len(s) <= 300]
