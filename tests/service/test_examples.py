"""Every example runs with the demo model and prints what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

EXAMPLES = Path(__file__).parents[2] / "examples"

#: A pattern in the output of each example.
EXPECTED = {
    "growing_batches": r"  512 sentences  \(512, 384\)",
    "fire_and_fetch": r"sending: \(400, 384\)(?s:.*)request 41 has arrived: \(20, 384\)(?s:.*)sends: 400",
    "multicast": r"listener 0 received 3 replies\nlistener 1 received 3 replies\nlistener 2 received 3 replies",
    "input_pipeline": r"training step 9 on \(32, 384\)",
    "text_classifier": r"6 of 6 right",
    "vectors_on_disk": r"500 vectors written, \(500, 384\) read, vector 123 belongs to sentence 123: True",
    "layers": r"layer -1: [1-9](?s:.*)layer -6: ",
    "faq_search": r"'does it work without a GPU'\n    0\.\d\d  Do I need a graphics card\?",
    "token_vectors": r"as one padded array: \(3, 1\d, 384\)",
    "own_tokenizer": r"seen \['\[CLS\]', '\[UNK\]', 'this', ',', 'please', '\[SEP\]'\]",
    "fine_tuned": r"(?s:sport \d+%.*kitchen \d+%.*computers \d+%.*)6 of 6 right",
    "dashboard": r"data requests  \d+\n(?s:.*)version  1\.10\.0\n +devices  (cpu|cuda)(?s:.*)max_seq_len  256\n",
    "over_http": r"123 200 2 384\nwide 200 1 768\nserver version 1\.10\.0",
}
ALONE = {"layers", "fine_tuned"}  # these start their servers themselves
OVER_HTTP = {"over_http", "dashboard"}
# tests/model/test_own_code.py tests own_model, and tests/clients/test_dataframes.py those for Dask and Spark. The
# other examples import common, so it is not run.
ELSEWHERE = {"own_model", "dask_job", "spark_job", "common"}


def test_every_example_is_here_and_in_the_list() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == EXPECTED.keys() | ELSEWHERE
    listed = set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text()))
    assert listed == scripts - {"common"}


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(server: RunningServer, name: str) -> None:
    args = [] if name in ALONE else ["-port", str(server.port), "-port_out", str(server.port_out)]
    if name in OVER_HTTP:
        args = [server.url]
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *args],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[name], done.stdout), done.stdout
