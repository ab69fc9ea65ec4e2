"""Every code block of every Markdown file is run, or is one of a few that cannot be run here.

A block is run by the tests of the file that the line above it names, or by tests/service/test_docs.py. These tests
take the block from the page (see tests/support/code_blocks.py). The commands of a block that cannot be run name
programs, options and files that exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from bert_serving.server.settings import parse_settings

from benchmarks.arena.__main__ import main as arena
from tests.support.code_blocks import ROOT, SHOWN_CODE, CodeBlock, all_blocks, code_blocks, pages

#: Each page with blocks that no test here can run, and why.
CANNOT_BE_RUN = {
    ("benchmarks/results/README.md", "takes an hour"),
    ("deploy/grafana/README.md", "needs Docker"),
    ("deploy/kuberay/README.md", "needs Docker and a cluster"),
    ("deploy/kubernetes/README.md", "needs Docker and a cluster"),
    ("deploy/kubernetes/README.md", "needs a cluster"),
    ("docs/operations.md", "needs Docker"),
    ("docs/performance.md", "takes half an hour"),
    ("docs/performance.md", "takes a quarter of an hour"),
    ("docs/runbook.md", "needs Docker"),
    ("docs/scaling.md", "needs two GPUs"),
    ("tests/fixtures/google_bert/README.md", "needs TensorFlow"),
}
DATA = {"json": json.loads, "yaml": yaml.safe_load}
#: Neither code nor data. test_site.py compares messages of the server with its code.
OTHER_LANGUAGES = {"text", "nginx"}

CLIENTS = (
    "tests/clients/test_clients_page.py"  # it tests that the blocks of its page are in languages that it runs
)
BUILDER = "docs/build_reference.py"
CI = ".ci/run"
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^# make ([\w-]+)", MAKEFILE, re.M))

BLOCKS = all_blocks()
NOT_RUN = [block for block in BLOCKS if block.reason is not None]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_belongs_to_a_block(page: Path) -> None:
    fences = re.findall(r"^[ >]*(?:```|~~~)", page.read_text("utf-8"), re.M)
    assert len(fences) == 2 * len(list(code_blocks(page)))


def test_every_block_has_a_language_for_which_there_is_a_test() -> None:
    known = {*SHOWN_CODE, *DATA, *OTHER_LANGUAGES}
    assert [block for block in BLOCKS if block.language not in known and block.runner is None] == []


def test_every_block_of_code_is_run_or_cannot_be_run() -> None:
    code = [block for block in BLOCKS if block.language in SHOWN_CODE]
    assert [block for block in code if block.runner is None and block.reason is None] == []
    assert {(block.page, block.reason) for block in NOT_RUN} == CANNOT_BE_RUN
    assert len(NOT_RUN) < len(code) / 10


@pytest.mark.parametrize("runner", sorted({str(block.runner) for block in BLOCKS} - {"None", BUILDER, CI}))
def test_the_tests_that_run_a_block_take_it_from_its_page(runner: str) -> None:
    assert re.fullmatch(r"tests/\w+/test_\w+\.py", runner)
    assert "blocks_run_by(__file__)" in (ROOT / runner).read_text()


def test_ci_runs_the_commands_that_contributors_run() -> None:
    lines = (ROOT / CI).read_text().splitlines()
    commands = [" ".join(words) for block in BLOCKS if block.runner == CI for words in block.commands]
    assert commands == [line for line in lines if line.startswith("make ")]


def test_the_signatures_of_the_reference_are_compared_with_the_code() -> None:
    assert all(block.page.startswith("docs/reference/") for block in BLOCKS if block.runner == BUILDER)
    _, _, check = MAKEFILE.partition("\ncheck:")
    assert f"{BUILDER} --check" in check.partition("\n\n")[0]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in DATA], ids=str)
def test_data_can_be_parsed(block: CodeBlock) -> None:
    assert DATA[block.language](block.code)


def test_what_a_page_installs_is_what_the_tests_have_installed() -> None:
    shown = [words for block in BLOCKS if block.language == "sh" for words in block.commands]
    installs = [words for words in shown if words[:2] == ["pip", "install"]]
    needed = [extra for words in installs for extra in re.findall(r"[\w]+(?=[\],])", " ".join(words))]
    assert len(installs) > 5
    (installed,) = re.findall(r"^\$\(VENV\)/\.test:.*\n\t\$\(PIP\) -e '\.\[(.*)\]'$", MAKEFILE, re.M)
    assert set(needed) <= set(installed.split(","))


def commands() -> Iterator[Any]:
    for block in NOT_RUN:
        for i, words in enumerate(block.commands if block.language == "sh" else ()):
            yield pytest.param(words, id=f"{block}:{i}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_that_is_not_run_names_what_exists(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    while assigned := re.fullmatch(r"\w+=(?:\$\((\w+)|.*)", words[0]):
        words = [assigned[1], *words[1:]] if assigned[1] else words[1:]
    program, *arguments = words
    if words[:3] == ["python", "-m", "benchmarks.arena"] or words[:2] == ["make", "bench"]:
        options = words[3:] if program == "python" else " ".join(words[2:]).removeprefix("ARGS=").split()
        monkeypatch.setattr("sys.argv", ["arena", *options, "--list"])
        arena()  # it checks all options, and only lists the systems
    elif program == "bert-serving-start":
        parse_settings(arguments)
    elif program == "make":
        assert arguments[0] in TARGETS
    elif program in ("kubectl", "docker"):
        files = [value for flag, value in pairwise(arguments) if flag in ("-k", "-f")]
        assert [path for path in files if not (ROOT / path).exists()] == []
    else:
        assert program in ("curl", "dmesg")


def test_there_are_commands_of_each_kind() -> None:
    programs = {param.values[0][0] for param in commands()}
    assert {"python", "make", "docker", "kubectl", "bert-serving-start"} <= programs
