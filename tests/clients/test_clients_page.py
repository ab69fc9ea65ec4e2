"""The code blocks of docs/clients.md, and those of other pages that name an environment, work as they are printed.

Python and JavaScript run in the environments of their clients, shell commands and Java in those of this machine.
Before a block, `texts`, `query` and `documents` are set. The block sets `vectors` (those of the texts), `vector`
(that of the query), `best` (the document that fits the query best), or `reply` (the body of a response of
OpenAI's API, for one text: "hello world"). A block of a client that cannot be installed names a file of requests/
instead; the requests of this file are sent as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import DOCUMENTS, KEY, QUERY
from environments import NPM_PACKAGES, npm_folder_of, python_of
from sent_requests import FOLDER, SentRequest, requests_of, scores_in, values_at, vectors_in

from tests.support.code_blocks import ROOT, CodeBlock, blocks_run_by, code_blocks, on_ports_of
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

PAGE = ROOT / "docs" / "clients.md"
ALL = blocks_run_by(__file__)
BLOCKS = [block for block in ALL if ROOT / block.page == PAGE]
OF_OTHER_PAGES = [block for block in ALL if block not in BLOCKS]
RUN = [block for block in BLOCKS if block.request is None]
TEXTS = ["First do it", "then do it right", "then do it better"]
HELLO = ["hello world"]

#: What is installed for all test runs. The other environments are installed only for `make clients`.
LIGHT = (None, "light")

#: The code before and after a block. The last line that it prints is the result, as JSON.
PYTHON = """texts, query, documents = {texts}, {query}, {documents}
{code}
import json
found = {{name: value for name, value in globals().items() if name in ("vectors", "vector", "best")}}
print()
print(json.dumps(found, default=lambda array: array.tolist()))
"""
JAVASCRIPT = """const texts = {texts};
{code}
console.log(JSON.stringify({{ vectors }}, (_, value) => ArrayBuffer.isView(value) ? Array.from(value) : value));
"""
JAVA = """import java.net.URI;
import java.net.http.*;

public class Snippet {{
    public static void main(String[] args) throws Exception {{
{code}
        System.out.println(reply);
    }}
}}
"""


def blocks(*languages: str) -> list[Any]:
    """Return the blocks of these languages that are run, each with the marks of its environment."""
    slow = [pytest.mark.slow_clients, pytest.mark.timeout(1200)]
    return [
        pytest.param(block, id=str(block), marks=[] if block.environment in LIGHT else slow)
        for block in RUN
        if block.language in languages
    ]


@pytest.fixture(scope="module")
def right(reference: Any) -> dict[str, np.ndarray]:
    """The vectors that sentence-transformers gives for the texts of the blocks."""
    return {
        "vectors": np.asarray(reference.encode(TEXTS)),
        "vector": np.asarray(reference.encode(QUERY)),
        "reply": np.asarray(reference.encode(HELLO)),
    }


@pytest.fixture
def run(open_server: RunningServer, tmp_path: Path) -> Callable[..., str]:
    """A function that runs a command, and returns the last line that it prints."""

    def run(*command: object, code: str = "", folder: Path = tmp_path) -> str:
        done = subprocess.run(
            [*map(str, command)],
            input=code,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": str(tmp_path), "LANG": "C.UTF-8", "CURL_HOME": str(tmp_path)},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[-1]

    return run


@pytest.fixture
def prepared(open_server: RunningServer, ranker: RunningServer) -> Callable[..., str]:
    """A function that returns a block's code with the ports of the servers of this test, between other code."""

    def prepare(block: CodeBlock, around: str) -> str:
        code = on_ports_of(open_server, block.code).replace("127.0.0.1:8126", f"127.0.0.1:{ranker.http_port}")
        values = {"texts": TEXTS, "query": QUERY, "documents": DOCUMENTS}
        return around.format(code=code, **{name: json.dumps(value) for name, value in values.items()})

    return prepare


@pytest.fixture
def assert_right(right: dict[str, np.ndarray], expected_ranking: list[tuple[int, float]]) -> Callable[..., None]:
    """A function that checks the results of a block."""

    def check(found: dict[str, Any]) -> None:
        assert found
        for name, value in found.items():
            if name == "best":
                assert value == DOCUMENTS[expected_ranking[0][0]]
            else:
                difference = np.abs(np.asarray(value, np.float64) - right[name])
                assert difference.shape == right[name].shape
                assert difference.max() <= 1e-5

    return check


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: CodeBlock, run: Any, prepared: Any, assert_right: Any) -> None:
    assert block.environment is not None, "name its environment in the line above"
    found = run(python_of(block.environment), "-", code=prepared(block, PYTHON))
    assert_right(json.loads(found))


@pytest.mark.parametrize("block", OF_OTHER_PAGES, ids=str)
def test_python_of_another_page_prints_what_its_comment_says(block: CodeBlock, run: Any, prepared: Any) -> None:
    assert block.environment == "light"
    assert [run(python_of(block.environment), "-", code=prepared(block, "{code}"))] == block.printed


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")
@pytest.mark.parametrize("block", blocks("js"))
def test_javascript(block: CodeBlock, run: Any, prepared: Any, assert_right: Any, tmp_path: Path) -> None:
    folder = tmp_path if block.environment is None else npm_folder_of(block.environment)
    found = run(shutil.which("node"), "--input-type=module", code=prepared(block, JAVASCRIPT), folder=folder)
    assert_right(json.loads(found))


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a JDK")
@pytest.mark.parametrize("block", blocks("java"))
def test_java(block: CodeBlock, run: Any, prepared: Any, assert_right: Any, tmp_path: Path) -> None:
    (tmp_path / "Snippet.java").write_text(prepared(block, JAVA))
    reply = json.loads(run(shutil.which("java"), "Snippet.java"))
    assert_right({"reply": vectors_in(reply)})


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("block", blocks("sh"))
def test_curl(block: CodeBlock, run: Any, prepared: Any, assert_right: Any, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text('fail\nsilent\nshow-error\nnoproxy = "*"\n')
    reply = json.loads(run("bash", "-euc", prepared(block, "{code}")))
    assert_right({"reply": vectors_in(reply)})


LITELLM = """import json, os
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise litellm downloads a list of prices
import litellm
found = []
for call, model, api_base, more in {code}:
    server = dict(model=model, api_base=api_base, api_key="any", max_retries=0, **more)
    if call == "embedding":
        reply = litellm.embedding(input={texts}, **server)
        found.append(dict(vectors=[item["embedding"] for item in reply.data]))
    else:
        results = litellm.rerank(query={query}, documents={documents}, top_n=1, **server).results
        found.append(dict(best={documents}[results[0]["index"]]))
print()
print(json.dumps(found))
"""
_LITELLM_ROW = re.compile(r"^\| `(embedding|rerank)` \| `(\S+)` \| `(\S+)` \| (?:`(\w+)=\"(\S+)\"` )?\|$", re.M)


@pytest.mark.slow_clients
@pytest.mark.timeout(1200)
def test_the_names_of_models_for_litellm(run: Any, prepared: Any, assert_right: Any) -> None:
    found = [row.groups() for row in _LITELLM_ROW.finditer(PAGE.read_text())]
    rows = [[call, model, api_base, {name: value} if name else {}] for call, model, api_base, name, value in found]
    assert {call for call, *_ in rows} == {"embedding", "rerank"}
    code = prepared(CodeBlock("docs/clients.md", 0, "python", json.dumps(rows)), LITELLM)
    results = json.loads(run(python_of("litellm"), "-", code=code))
    assert len(results) == len(rows)
    for result in results:
        assert_right(result)


@pytest.mark.parametrize(
    "sent", [request for path in sorted(FOLDER.glob("*.http")) for request in requests_of(path)], ids=str
)
def test_a_request_of_a_client_gets_the_reply_that_the_client_reads(
    sent: SentRequest, server: RunningServer, open_server: RunningServer, ranker: RunningServer
) -> None:
    assert sent.is_chunked or (sent.content_length or 0) == len(sent.body)
    embedder = server if KEY in sent.head else open_server
    port = (ranker if ":8126" in sent.head else embedder).http_port
    status, reply = sent.send(port)
    assert status == 200, reply
    for place in sent.reads:
        values = values_at(reply, place)
        assert values, place
        assert None not in values, place
    if sent.texts:
        rows = vectors_in(reply)
        assert rows.shape == (len(sent.texts), 384)
        assert np.abs(rows - _vectors_of(sent.texts, open_server)).max() <= 1e-6
    elif sent.body:
        scores = scores_in(reply)
        assert sorted(scores) == [0, 1, 2]
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


def _vectors_of(texts: list[str], server: RunningServer) -> np.ndarray:
    from bert_serving.client import BertClient

    with BertClient(**server.ports) as client:
        return np.asarray(client.encode(texts, normalize=True))


def test_every_block_is_run_or_its_requests_are_sent() -> None:
    assert list(code_blocks(PAGE)) == BLOCKS, "a block of this page has another runner, or is not run"
    known = {"python", "js", "java", "sh"}
    assert {block.language for block in RUN} <= known
    assert {block.environment for block in RUN if block.language == "js"} <= {None, *NPM_PACKAGES}
    named = {block.request for block in BLOCKS} - {None}
    assert named == {path.stem for path in FOLDER.glob("*.http")}


def test_the_table_names_every_section() -> None:
    page = PAGE.read_text()
    sections = re.findall(r"^### (.+)$", page, re.M)
    assert sections
    assert [name for name in sections if f"[{name}](#" not in page] == []
