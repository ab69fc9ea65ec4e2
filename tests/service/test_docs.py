"""The code blocks of README.md, CONTRIBUTING.md and docs/ run as they are printed there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.code_blocks import ROOT, CodeBlock, code_blocks, on_ports_of
from tests.support.model_servers import with_prompts
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs/clients.md")  # its code needs other packages: tests/clients/test_clients_page.py
SHELL = ("sh", "bash")
BLOCKS = [block for page in PAGES for block in code_blocks(page) if block.language in ("python", *SHELL)]
RUN = [block for block in BLOCKS if block.reason is None]
NOT_RUN = [block for block in BLOCKS if block.reason is not None]

#: This code runs before each Python block that imports nothing.
BEFORE = """
from bert_serving.client import BertClient
client = BertClient()
texts = ["First do it", "then do it right", "then do it better"]
text = "the quick brown fox jumps over the lazy dog. " * 7
"""


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[RunningServer]:
    """A server with the demo model and prompts."""
    folder = with_prompts(tmp_path_factory.mktemp("docs") / "prompted", demo_model)
    with RunningServer("-model_dir", folder) as running:
        yield running.wait_ready()


@pytest.mark.parametrize("block", [block for block in RUN if block.language == "python"], ids=str)
def test_python_runs_and_prints_what_its_comments_say(
    block: CodeBlock, prompted: RunningServer, demo_model: Path, tmp_path: Path
) -> None:
    before = "" if "import " in block.code else BEFORE
    code = on_ports_of(prompted, before + block.code).replace("/path/to/model", str(demo_model))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == block.printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("block", [block for block in RUN if block.language in SHELL], ids=str)
def test_shell_commands_succeed(block: CodeBlock, prompted: RunningServer, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text('fail\nsilent\nshow-error\nnoproxy = "*"\n')
    (tmp_path / "sentences.ndjson").write_text("".join(json.dumps(f"sentence {i}") + "\n" for i in range(20)))
    reviews = {"id": [1, 2], "stars": [5, 1], "body": ["a good book", "a bad one"]}
    pa.parquet.write_table(pa.table(reviews), tmp_path / "reviews.parquet")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", on_ports_of(prompted, block.code)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=tmp_path,
        env={**os.environ, "CURL_HOME": str(tmp_path), "PATH": programs},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_a_block_that_is_not_run_says_why(block: CodeBlock) -> None:
    assert block.reason
    pytest.skip(f"not run: {block.reason}")


def test_most_blocks_are_run() -> None:
    assert {block.language for block in RUN} >= {"python", "sh"}
    assert len(RUN) >= len(NOT_RUN), f"{len(RUN)} of {len(BLOCKS)} code blocks are run"
