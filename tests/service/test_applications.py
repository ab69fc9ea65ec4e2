"""The applications have the quality that docs/applications says. With all of their data: `make examples`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_classifier

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/applications"
MODULES = {"corpora", "report"}  # what the applications share
TESTED = {
    "align_bibles",
    "classify_reviews",
    "find_duplicates",
    "mine_translations",
    "name_topics",
    "search_manual",
    "summarize_manual",
    "train_your_own",
}
MAX_LINES = 150
TIMEOUT_S = 3600

Table: TypeAlias = dict[str, dict[str, float]]
Run: TypeAlias = Callable[..., Table]

slow = pytest.mark.slow_examples, pytest.mark.timeout(TIMEOUT_S)


def full_and_small(*small: str) -> pytest.MarkDecorator:
    """Run a test with a part of the data, and with all of it in `make examples`."""
    return pytest.mark.parametrize(
        "words", [pytest.param([], id="all", marks=slow), pytest.param(small, id="small")]
    )


@pytest.fixture
def run(server: RunningServer, tmp_path: Path) -> Run:
    """Return a function that runs an application and returns its table: the measures of each of its lines."""

    def call(name: str, *words: str) -> Table:
        picture = tmp_path / "picture.svg"
        ports = ["--port", str(server.port), "--port_out", str(server.port_out), "--picture", str(picture)]
        tables = tables_of(tmp_path, name, *ports, *words)
        assert "</svg>" in picture.read_text()
        return tables[-1]

    return call


def tables_of(folder: Path, name: str, *words: str) -> list[Table]:
    """Run an application in a folder, and return the tables that it prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    tables: list[Table] = []
    names: list[str] = []
    for line in done.stdout.splitlines():
        if re.match(r" {33,}\S", line):
            names = re.findall(r"\S+(?: \S+)*", line)
            tables.append({})
        elif names and (found := re.fullmatch(rf"(\S.*?)((?: +-?\d+\.\d{{3}}){{{len(names)}}})", line)):
            tables[-1][found[1]] = dict(zip(names, map(float, found[2].split()), strict=True))
    return tables


def test_every_application_is_short_and_has_a_page() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - MODULES
    for name in scripts:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= MAX_LINES, name
        (page,) = re.findall(r"docs/applications/\w+\.md", (EXAMPLES / f"{name}.py").read_text())
        assert f"python examples/applications/{name}.py" in (ROOT / page).read_text()
    assert scripts == TESTED


@full_and_small("--texts", "4000")
def test_classification(run: Run, words: list[str]) -> None:
    found = run("classify_reviews", *words)
    few = [found[f"{size} labelled texts"] for size in (30, 100, 300)]
    gains = [measures["vectors"] - measures["bag of words"] for measures in few]
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 0.04
    best = found[f"{'1,000' if words else '7,000'} labelled texts"]
    assert best["vectors"] > 0.7
    if not words:
        assert best["bag of words"] > best["vectors"] + 0.02, "docs/applications/classification.md says so"


@pytest.mark.slow_examples
@pytest.mark.timeout(TIMEOUT_S)
def test_classification_of_long_reviews(run: Run) -> None:
    found = run("classify_reviews", "--source", "imdb")["10,000 labelled texts"]
    assert found["bag of words"] > found["vectors"] + 0.03, "docs/applications/classification.md says so"


@full_and_small("--folders", "faq", "tutorial")
def test_search(run: Run, words: list[str]) -> None:
    found = {name: measures["MRR@10"] for name, measures in run("search_manual", *words).items()}
    assert found["vectors"] > found["words (BM25)"] + 0.15
    assert found["vectors"] > (0.65 if words else 0.5)
    assert found["vectors, late chunking"] > found["vectors"] + 0.01
    assert found["vectors, approximate index"] > found["vectors"] - 0.05


def test_a_reranker_sorts_the_first_passages_once_more(run: Run, tmp_path: Path) -> None:
    with RunningServer("-model_dir", make_classifier(tmp_path / "random", "bert", num_labels=1)) as reranker:
        reranker.wait_ready()
        found = run("search_manual", "--folders", "faq", "--reranker", reranker.url)
    assert found["the same, reranked"]["MRR@10"] < found["words and vectors"]["MRR@10"], "its weights are random"


@full_and_small("--pages", "60")
def test_summary(run: Run, words: list[str]) -> None:
    found = {name: measures["rouge1"] for name, measures in run("summarize_manual", *words).items()}
    assert found["central and new (LexRank, MMR)"] > found["random sentences"] + 0.01
    assert found["first sentences"] > found["central (LexRank)"], "docs/applications/summary.md says so"


@full_and_small("--books", "mark")
def test_alignment(run: Run, words: list[str]) -> None:
    for book, found in run("align_bibles", *words).items():
        assert found["precision by vectors"] > found["precision by length"] + 0.1, book
        assert found["recall by vectors"] > found["recall by length"] + 0.1, book
        assert min(found["precision by vectors"], found["recall by vectors"]) > 0.78, book


@full_and_small("--books", "luke", "mark")
def test_mining(run: Run, words: list[str]) -> None:
    for book, found in run("mine_translations", *words).items():
        assert found["precision by margin"] > 0.94, book
        assert found["recall by margin"] > max(0.92, found["recall by cosine"]), book


@full_and_small("--books", "mark", "romans")
def test_duplicates(run: Run, words: list[str]) -> None:
    found = run("find_duplicates", *words)
    both, by_words, vectors = (
        found[f"reworded: {name}"]["F1"] for name in ("letters and vectors", "words", "vectors")
    )
    assert both > vectors + (0 if words else 0.03)
    assert found["copies: vectors"]["F1"] > 0.85
    if not words:
        assert both > by_words + 0.01
        assert by_words > vectors + 0.02, "docs/applications/duplicates.md says so"
        assert found["copies: words"]["F1"] > found["copies: vectors"]["F1"] + 0.01, "and this"


@full_and_small("--data", "definitions", "--per_category", "60")
def test_topics(run: Run, words: list[str]) -> None:
    found = run("name_topics", *words)
    for measure, margin in (("adjusted Rand", 0.15), ("NMI", 0.15)):
        assert found["definitions: vectors"][measure] > found["definitions: words"][measure] + margin
        if not words:
            assert found["starts: vectors"][measure] > found["starts: words"][measure] + 0.05
            assert found["mails: words"][measure] > found["mails: vectors"][measure] + 0.05, "topics.md says so"


@full_and_small("--texts", "60", "--labelled", "600", "--epochs", "1")
def test_a_model_of_your_own(tmp_path: Path, words: list[str]) -> None:
    masked, classified, pre_trained, served = tables_of(tmp_path, "train_your_own", *words)
    perplexity = {name: measures["perplexity"] for name, measures in masked.items()}
    assert perplexity["pre-trained"] < perplexity["by frequency"] / (1 if words else 2)
    assert served.keys() == {"folder", "-tuned_model_dir", "state dict"}
    for found in (*served.values(), *pre_trained.values()):
        assert found["largest error x 1e6"] < 10
        assert found.get("equal labels", 1) > 0.99
    accuracy = {name: measures["accuracy"] for name, measures in classified.items()}
    own, tuned = accuracy["pre-trained and fine-tuned"], accuracy["fine-tuned"]
    if not words:  # 500 labelled texts, read once, are too few for fine-tuning
        assert min(own, tuned) > accuracy["words, linear model"]
        assert min(own, tuned) > accuracy["vectors, linear model"] + 0.03
        assert abs(own - tuned) < 0.03, "docs/applications/own_model.md says that pre-training makes no difference"
