"""Finds the code blocks of the documentation, and the test that runs each of them.

Each block in a language of SHOWN_CODE is run by the tests of one file, its runner. This is test_docs.py, unless
the line above the block says otherwise. The tests get their blocks from `blocks_run_by`, so they run what a page
shows. tests/unit/test_code_blocks.py checks that no block is left out.
"""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.support.running_server import RunningServer

ROOT = Path(__file__).parents[2]

#: The languages whose blocks are run.
SHOWN_CODE = ("sh", "bash", "python", "pycon")

_DOCS = "tests/service/test_docs.py"
_CLIENTS = "tests/clients/test_clients_page.py"
_CLIENTS_PAGE = "docs/clients.md"
#: Builds these pages, in which Python blocks are signatures. `make check` compares them with the code.
_REFERENCE, _BUILDER = "docs/reference/", "docs/build_reference.py"

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<note>not run|run by|environment|request): (?P<value>.+?) -->\n(?P=indent))?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_FIELDS = {"not run": "reason", "run by": "run_by", "environment": "environment", "request": "request"}
_PRINTED = re.compile(r"^.*\bprint\(.*\)  # (.+)$", re.M)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block. The line above it may say how it is tested.

    page: the page's path inside the repository. line: where the block begins there.
    reason: why no test can run the block: `<!-- not run: REASON -->`.
    run_by: the file with the tests that run it: `<!-- run by: FILE -->`.
    environment: where it runs, a name of tests/clients/environments.py: `<!-- environment: NAME -->`.
    request: a file of tests/clients/requests with the requests that the block's program sends, which is not run
        itself: `<!-- request: NAME -->`.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None = None
    run_by: str | None = None
    environment: str | None = None
    request: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runner(self) -> str | None:
        """The file that runs the block. None: it is not run, because of its language or of its reason."""
        if self.reason is not None:
            return None
        if self.run_by is not None:
            return self.run_by
        if self.page == _CLIENTS_PAGE or self.environment is not None:
            return _CLIENTS
        if self.language == "python" and self.page.startswith(_REFERENCE):
            return _BUILDER
        return _DOCS if self.language in SHOWN_CODE else None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, without comments."""
        found, command = [], ""
        for line in self.code.replace("\\\n", " ").splitlines():
            command += f"{line}\n"
            with suppress(ValueError):  # a string goes on in the next line
                found.append(shlex.split(command, comments=True))
                command = ""
        assert not command, f"{self}: {command}"
        return [words for words in found if words]

    @property
    def start_options(self) -> list[str]:
        """The options of the block's bert-serving-start, without `-http_port 8125`: tests have other ports."""
        (words,) = [words for words in self.commands if words[0] == "bert-serving-start"]
        return shlex.split(shlex.join(words[1:]).replace("-http_port 8125", ""))

    @property
    def printed(self) -> list[str]:
        """The lines that the code should print: the comments after its calls of print()."""
        return _PRINTED.findall(self.code)


def pages() -> list[Path]:
    """Return all Markdown files of the repository."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / name for name in listed.stdout.splitlines()]
    return sorted(ROOT.rglob("*.md"))  # an unpacked sdist


def code_blocks(path: Path) -> Iterator[CodeBlock]:
    """Yield the code blocks of a Markdown file."""
    text = path.read_text("utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        notes = {_FIELDS[found["note"]]: found["value"]} if found["note"] else {}
        yield CodeBlock(str(path.relative_to(ROOT)), line, found["language"], dedent(found["code"]), **notes)


@functools.cache
def all_blocks() -> tuple[CodeBlock, ...]:
    """Return the code blocks of all pages."""
    return tuple(block for page in pages() for block in code_blocks(page))


def blocks_run_by(file: str) -> list[CodeBlock]:
    """Return the blocks that the tests of a file run. file: its `__file__`."""
    name = str(Path(file).resolve().relative_to(ROOT))
    blocks = [block for block in all_blocks() if block.runner == name]
    assert blocks, f"no block of a page has the line above it: <!-- run by: {name} -->"
    return blocks


def on_ports_of(server: RunningServer, code: str) -> str:
    """Return the code with a server's ports in place of the default ones."""
    code = code.replace("BertClient()", f"BertClient(port={server.port}, port_out={server.port_out})")
    code = re.sub(r"\bbert-serving-status\b", rf"\g<0> -port {server.port} -port_out {server.port_out}", code)
    return code.replace("127.0.0.1:8125", f"127.0.0.1:{server.http_port}")
