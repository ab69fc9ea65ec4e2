"""Finds the code blocks of the documentation, and changes the ports in their code to those of a test server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.running_server import RunningServer

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>not run|environment|request): (?P<value>.+?) -->\n)?"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
_FIELDS = {"not run": "reason", "environment": "environment", "request": "request"}
_PRINTED = re.compile(r"^.*\bprint\(.*\)  # (.+)$", re.M)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block. The line above it may say how it is tested.

    reason: why the tests do not run the block: `<!-- not run: REASON -->`. environment: where the block runs, a
    name of tests/clients/environments.py: `<!-- environment: NAME -->`. request: a file of tests/clients/requests
    with the requests that the block's program sends, which is not run itself: `<!-- request: NAME -->`.
    """

    place: str
    language: str
    code: str
    reason: str | None = None
    environment: str | None = None
    request: str | None = None

    def __str__(self) -> str:
        return self.place

    @property
    def printed(self) -> list[str]:
        """The lines that the code should print: the comments after its calls of print()."""
        return _PRINTED.findall(self.code)


def code_blocks(path: Path) -> Iterator[CodeBlock]:
    """Yield the code blocks of a Markdown file. A block without the name of a language is skipped."""
    text = path.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        notes = {_FIELDS[found["note"]]: found["value"]} if found["note"] else {}
        yield CodeBlock(f"{path.relative_to(ROOT)}:{line}", found["language"], found["code"], **notes)


def on_ports_of(server: RunningServer, code: str) -> str:
    """Return the code with a server's ports in place of the default ones."""
    code = code.replace("BertClient()", f"BertClient(port={server.port}, port_out={server.port_out})")
    code = re.sub(r"\bbert-serving-status\b", rf"\g<0> -port {server.port} -port_out {server.port_out}", code)
    return code.replace("127.0.0.1:8125", f"127.0.0.1:{server.http_port}")
