"""The RAG programs of examples/pipelines put the right section of Python's FAQ into the prompt of the LLM.

No language model is installed. examples/pipelines/stand_in_llm.py takes its place: a server that answers with a
sentence of the prompt.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import REQUIREMENTS, python_of

from tests.support.code_blocks import ROOT, blocks_run_by
from tests.support.running_server import RunningServer, free_ports
from tests.support.waiting import HANG_S

sys.path.append(str(ROOT / "examples/pipelines"))
sys.path.append(str(ROOT / "examples/applications"))

from corpora import python_manual
from stand_in_llm import StandIn, answer_to

PIPELINES = ROOT / "examples/pipelines"
#: What docs/applications/pipelines.md shows. The program that is asked is the one for LangChain.
(SHOWN,) = blocks_run_by(__file__)
INSTALL, START, STAND_IN, WRITE, ASK = SHOWN.commands
MAX_LINES = 65
RUN_WORDS = 8  # so many words in a row are hardly ever in two sections of the FAQ

pytestmark = [pytest.mark.slow_clients, pytest.mark.timeout(1200)]


@pytest.fixture
def llm() -> Iterator[StandIn]:
    (port,) = free_ports(1)
    with StandIn(port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def has_words_of(text: str, other: str) -> bool:
    """Return whether a text has RUN_WORDS words in a row of the other text, or all of it if it is shorter."""
    words, text = other.split(), " ".join(text.split())
    ends = range(min(RUN_WORDS, len(words)), len(words) + 1)
    return any(" ".join(words[max(0, end - RUN_WORDS) : end]) in text for end in ends)


def answers_of(words: list[str], server: RunningServer, llm: StandIn, folder: Path) -> list[str]:
    """Run a RAG program in a folder; return the lines that it prints. words: its path and its arguments."""
    servers = ["--server", f"{server.url}/v1", "--llm", f"http://127.0.0.1:{llm.server_port}/v1"]
    done = subprocess.run(
        [python_of("frameworks"), *words, *servers],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=folder,
        # Nothing but the two servers can be reached, as on a machine without a network.
        env={
            "PATH": os.defpath,
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "ALL_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def write_faq(folder: Path) -> list[str]:
    """Write Python's FAQ into the folder `faq` of a folder; return its questions. The page shows this command."""
    python, script, *arguments, _, _ = WRITE
    assert python == "python"
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments], check=True, capture_output=True, text=True, cwd=folder
    )
    return done.stdout.splitlines()


def test_the_commands_of_the_page_answer_its_question(
    open_server: RunningServer, llm: StandIn, tmp_path: Path
) -> None:
    assert START == ["bert-serving-start", "-http_port", "8125"], "the fixtures start a server"
    assert STAND_IN == ["python", "examples/pipelines/stand_in_llm.py"], "and this program"
    packages = {name.partition("==")[0] for name in REQUIREMENTS["frameworks"]}
    assert set(INSTALL) - {"pip", "install"} <= packages
    assert ASK[-1] in write_faq(tmp_path)
    (answer,) = answers_of([str(ROOT / ASK[1]), *ASK[2:]], open_server, llm, tmp_path)
    assert [answer] == [answer_to(prompt) for prompt in llm.prompts]
    (section,) = [section for section in python_manual("faq") if section.heading == ASK[-1]]
    assert has_words_of(" ".join(section.paragraphs), answer)


@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
def test_a_rag_program_finds_the_right_section(
    framework: str, open_server: RunningServer, llm: StandIn, tmp_path: Path
) -> None:
    script = PIPELINES / f"rag_{framework}.py"
    assert len(script.read_text().splitlines()) <= MAX_LINES
    questions = write_faq(tmp_path)
    answers = answers_of([str(script), "faq", *questions], open_server, llm, tmp_path)
    assert answers == [answer_to(prompt) for prompt in llm.prompts]

    # The paragraphs of the right section of each question, in the order of the questions.
    right = [" ".join(s.paragraphs) for s in python_manual("faq") if s.heading.endswith("?")]
    found = list(zip(questions, right, llm.prompts, answers, strict=True))
    assert all(question in prompt for question, _, prompt, _ in found)
    in_prompt = sum(has_words_of(prompt, section) for _, section, prompt, _ in found)
    in_answer = sum(has_words_of(section, answer) for _, section, _, answer in found)
    print(f"right section in the prompt: {in_prompt}, answer from it: {in_answer} of {len(found)}")
    assert in_prompt > 0.77 * len(found), "docs/applications/pipelines.md says so"
    assert in_answer > 0.5 * len(found), "docs/applications/pipelines.md says so"
