"""The commands on the pages about applications and deployment name programs, flags and extras that exist.

The programs themselves run in tests/service/test_applications.py and test_pipelines.py (with all of their data:
`make examples`), the manifests are checked in test_manifests.py, and the commands of the other pages run in
tests/service/test_docs.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import distribution
from itertools import pairwise
from typing import Any

import pytest

from tests.support.code_blocks import ROOT, code_blocks

PAGES = sorted(
    path for place in ("docs/applications", "examples", "deploy") for path in (ROOT / place).rglob("*.md")
)
PROJECT = distribution("bert-embedding-service")
EXTRAS = set(PROJECT.metadata.get_all("Provides-Extra") or ())
SCRIPTS = {script.name for script in PROJECT.entry_points}
TARGETS = set(re.findall(r"^# make (\w+)", (ROOT / "Makefile").read_text(), re.M))
SOURCES = {
    folder: "\n".join(path.read_text() for path in (ROOT / folder).rglob("*.py"))
    for folder in ("server", "examples")
}


def commands() -> Iterator[Any]:
    for page in PAGES:
        for block in code_blocks(page):
            if block.language == "sh":
                for i, line in enumerate(block.code.replace("\\\n", " ").splitlines()):
                    words = shlex.split(line, comments=True)
                    if words:
                        yield pytest.param(words, id=f"{block}:{i}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_names_what_exists(words: list[str]) -> None:
    program, *arguments = words
    flags = [word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)]
    if program == "python":
        assert (ROOT / arguments[0]).is_file()
        assert [flag for flag in flags if f'"{flag}"' not in SOURCES["examples"]] == []
    elif program.startswith("bert-serving-"):
        assert program in SCRIPTS
        assert [flag for flag in flags if not _is_flag(flag)] == []
    elif program == "pip":
        extras = {
            extra for word in arguments for extra in re.sub(r"^\.\[|\]$", "", word).split(",") if "[" in word
        }
        assert extras <= EXTRAS
    elif program == "make":
        assert set(arguments[:1]) <= TARGETS
    elif program == "kubectl":
        files = [value for flag, value in pairwise(arguments) if flag in ("-k", "-f")]
        assert [path for path in files if not (ROOT / path).exists()] == []
    else:
        assert program in ("docker", "curl", "jupyter") or "=" in program


def _is_flag(flag: str) -> bool:
    """Whether an option is added to a parser by its name, or is a field of settings."""
    return bool(re.search(rf'"{flag}"|^    {flag.lstrip("-")}: .*Field\(', SOURCES["server"], re.M))


def test_there_are_commands_of_each_kind() -> None:
    programs = {param.values[0][0] for param in commands()}
    assert {"python", "pip", "kubectl", "bert-serving-start"} <= programs
