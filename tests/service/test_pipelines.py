"""The database that bert-serving-encode fills finds what an exact search finds, and the notebook runs.

tests/clients/test_rag_programs.py tests the other programs of examples/pipelines.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.code_blocks import ROOT, blocks_run_by
from tests.support.running_server import RunningServer

TIMEOUT_S = 3600
SHOWN = [words for block in blocks_run_by(__file__) for words in block.commands if words[:2] != ["pip", "install"]]
FILL_ALL, FILL_SOME, (*JUPYTER, NOTEBOOK) = SHOWN
#: The programs of this environment, among them bert-serving-encode.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

slow = pytest.mark.slow_examples, pytest.mark.timeout(TIMEOUT_S)


@pytest.mark.parametrize(
    "shown", [pytest.param(FILL_ALL, id="all", marks=slow), pytest.param(FILL_SOME, id="small")]
)
def test_a_database_of_vectors_finds_the_right_passages(server: RunningServer, shown: list[str]) -> None:
    address = f"localhost:{server.port}:{server.port_out}"
    python, script, *options = shown
    assert python == "python"
    done = subprocess.run(
        [sys.executable, ROOT / script, "--server", address, "--url", server.url, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "PATH": PATH},
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    lines = re.findall(r"^(\S.*?) {2,}(\d\.\d{3}) +(\d\.\d{3})$", done.stdout, re.M)
    found = {name: (float(recall), float(as_exact)) for name, recall, as_exact in lines}
    exact, _ = found["exact, by NumPy"]
    assert exact > (0.7 if shown == FILL_ALL else 0.9)
    recall, as_exact = found["database"]
    assert recall > exact - 0.01
    assert as_exact > 0.99, "the database compares every vector"
    recall, as_exact = found["database, index"]
    assert recall > exact - 0.05
    assert as_exact > 0.9, "docs/applications/pipelines.md says so"


def test_the_notebook_finds_the_right_passages(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    assert JUPYTER == ["jupyter", "lab"]
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "git has no outputs"
    ports = f"{server.port}:{server.port_out}"
    for cell in cells:
        client = f"BertClient(port={server.port}, port_out={server.port_out})"
        cell.source = cell.source.replace("5555:5556", ports).replace("BertClient()", client)
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", PATH)
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str((ROOT / NOTEBOOK).parent)}}
    ).execute()

    said = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert "Can I change a single character of a string?\n    You can't, because strings are immutable.\n" in said
    recall = ast.literal_eval(cells[-1].outputs[-1].data["text/plain"])
    assert recall["recall@1"] > 0.68
    assert recall["recall@10"] > 0.9
