"""The code blocks of the Markdown pages run as they are printed there, except those that another file runs."""

from __future__ import annotations

import ast
import asyncio
import doctest
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from inspect import iscoroutine
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.code_blocks import ROOT, SHOWN_CODE, CodeBlock, blocks_run_by, on_ports_of
from tests.support.model_servers import with_prompts
from tests.support.running_server import RunningServer, free_ports
from tests.support.waiting import HANG_S

SHELL = ("sh", "bash")
BLOCKS = blocks_run_by(__file__)
#: The block of docs/models.md is the command that starts the server of all other blocks.
(START,) = [block for block in BLOCKS if block.code.startswith("bert-serving-start")]

#: This code runs before each Python block that imports nothing.
BEFORE = """
from bert_serving.client import BertClient
client = BertClient()
texts = ["First do it", "then do it right", "then do it better"]
text = "the quick brown fox jumps over the lazy dog. " * 7
"""
#: This code runs before the examples of docstrings.
IMPORTS = """
from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.server import AsyncEncoder, BertServer, Encoder
from bert_serving.server.helper import get_args_parser
"""


def blocks(*languages: str) -> list[Any]:
    """Return the blocks of these languages; of equal ones, the first."""
    found = [block for block in BLOCKS if block.language in languages and block is not START]
    different = {block.code: block for block in reversed(found)}
    return [pytest.param(block, id=str(block)) for block in reversed(different.values())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def prompted(folder: Path, demo_model: Path) -> Iterator[RunningServer]:
    """A server with the demo model and prompts."""
    model = with_prompts(folder / "prompted", demo_model)
    options = [word.replace("/path/to/model", str(model)) for word in START.start_options]
    with RunningServer(*options, "-http_socket", folder / "http") as running:
        yield running.wait_ready()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the blocks read, in the current folder."""
    monkeypatch.chdir(tmp_path)
    lines = [f"sentence {i}" for i in range(20)]
    (tmp_path / "sentences.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\t{line}\n" for i, line in enumerate(lines)))
    for name in ("logs", "books"):
        (tmp_path / name).mkdir()
    with gzip.open(tmp_path / "logs/today.jsonl.gz", "wt") as log:
        log.writelines(json.dumps({"message": line}) + "\n" for line in lines)
    (tmp_path / "books/one.txt").write_text("\n".join(lines))
    reviews = {"id": [1, 2], "stars": [5, 1], "body": ["a good book", "a bad one"]}
    pa.parquet.write_table(pa.table(reviews), tmp_path / "reviews.parquet")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs_and_prints_what_its_comments_say(
    block: CodeBlock, prompted: RunningServer, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = "" if "import " in block.code else BEFORE
    code = on_ports_of(prompted, before + block.code).replace("/path/to/model", str(demo_model))
    exec(compile(code, str(block), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == block.printed


@pytest.mark.parametrize("block", blocks("pycon"))
def test_an_example_of_a_docstring_shows_its_result(
    block: CodeBlock, prompted: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code = block.code
    if "BertServer" in code:  # it needs ports that are free
        port, port_out = map(str, free_ports(2))
        code = code.replace("5555", port).replace("5556", port_out)
        code = code.replace("BertClient()", f"BertClient(port={port}, port_out={port_out})")
    names: dict[str, Any] = {}
    exec(IMPORTS, names)
    for example in doctest.DocTestParser().get_examples(on_ports_of(prompted, code)):
        # As at the prompt of `python -m asyncio`, where `async with` may stand alone.
        result = eval(compile(example.source, str(block), "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if iscoroutine(result):
            asyncio.run(result)
        assert capsys.readouterr().out == example.want


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("block", blocks(*SHELL))
def test_shell_commands_succeed(block: CodeBlock, prompted: RunningServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text('fail\nsilent\nshow-error\nnoproxy = "*"\n')
    code = on_ports_of(prompted, block.code)
    code = code.replace("/run/bert-serving/http", str(folder / "http"))
    code = code.replace("gpu-machine:5555", f"127.0.0.1:{prompted.port}:{prompted.port_out}")
    of_checkout = ".venv/" in code
    if of_checkout:
        code = code.replace(".venv/bin/", "")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", code],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT if of_checkout else tmp_path,
        env={
            **os.environ,
            "CURL_HOME": str(tmp_path),
            "PATH": programs,
            # The tests that a block runs are found, but they run only once: beside this one.
            "PYTEST_ADDOPTS": "--collect-only --noconftest -p no:cacheprovider",
        },
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if re.search(r"^curl .*\|", code, re.M):  # the exit status is that of the last program
        assert done.stdout, done.stderr


def test_there_are_blocks_of_each_language() -> None:
    assert {"sh", "python", "pycon"} <= {block.language for block in BLOCKS} <= set(SHOWN_CODE)
