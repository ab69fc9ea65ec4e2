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

from tests.support.code_blocks import ROOT, blocks_run_by
from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_classifier

EXAMPLES = ROOT / "examples/applications"
MODULES = {"corpora", "report"}  # what the applications share
SHOWN = [words for block in blocks_run_by(__file__) for words in block.commands]
#: The words after `python` of the commands on the pages, by the name of the script, with a value that matters.
COMMANDS = {Path(words[1]).stem: words[1:] for words in SHOWN if words[0] == "python" and "imdb" not in words}
COMMANDS |= {f"{Path(words[1]).stem} imdb": words[1:] for words in SHOWN if words[-1] == "imdb"}
TESTED = {
    "align_bibles",
    "classify_reviews",
    "classify_reviews imdb",
    "distill_student",
    "find_duplicates",
    "mine_translations",
    "name_topics",
    "search_manual",
    "summarize_manual",
    "train_your_own",
    "watch_drift",
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
    """Run a command of COMMANDS in a folder, with more options; return the tables that it prints."""
    script, *options = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, ROOT / script, *options, *words],
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
    assert COMMANDS.keys() == TESTED
    assert scripts == {name.split()[0] for name in TESTED}
    # A fixture starts the server, and `make test` has installed the packages.
    assert {" ".join(words[:2]) for words in SHOWN if words[0] != "python"} == {
        "bert-serving-start",
        "pip install",
    }
    for name in scripts:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= MAX_LINES, name
        (page,) = re.findall(r"docs/applications/\w+\.md", (EXAMPLES / f"{name}.py").read_text())
        assert f"python examples/applications/{name}.py" in (ROOT / page).read_text()


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
    found = run("classify_reviews imdb")["10,000 labelled texts"]
    assert found["bag of words"] > found["vectors"] + 0.03, "docs/applications/classification.md says so"


@full_and_small("--folders", "faq", "tutorial")
def test_search(run: Run, words: list[str], tmp_path: Path) -> None:
    if words:
        model = make_classifier(tmp_path / "random", "bert", num_labels=1)
        with RunningServer("-model_dir", model).wait_ready() as reranker:
            found = run("search_manual", *words, "--reranker", reranker.url)
        late, sorted_again = found["vectors, late chunking"], found["late chunking, reranked"]
        assert sorted_again["MRR@10"] < late["MRR@10"], "its weights are random"
    else:
        found = run("search_manual")
    scores = {name: measures["MRR@10"] for name, measures in found.items()}
    assert scores["vectors"] > scores["words (BM25)"] + 0.15
    assert scores["vectors"] > (0.65 if words else 0.5)
    assert scores["vectors, late chunking"] > scores["vectors"] + 0.01
    assert scores["vectors, approximate index"] > scores["vectors"] - 0.05
    if not words:
        assert scores["words and vectors"] < scores["vectors"] - 0.05, "docs/applications/search.md says so"
        assert scores["vectors, title of page + text"] < scores["vectors"], "and this"


@full_and_small("--pages", "60")
def test_summary(run: Run, words: list[str]) -> None:
    found = {name: measures["rouge1"] for name, measures in run("summarize_manual", *words).items()}
    best = found["central and new (LexRank, MMR)"]
    assert best > found["random sentences"] + 0.01
    assert found["first sentences"] > best, "docs/applications/summary.md says so"


@full_and_small("--books", "mark")
def test_alignment(run: Run, words: list[str]) -> None:
    found = run("align_bibles", *words)
    for book in {name.split(":")[0] for name in found}:
        by_lengths, by_words, by_vectors = (found[f"{book}: {way}"] for way in ("lengths", "words", "vectors"))
        for measure in ("precision", "recall"):
            assert by_vectors[measure] > max(0.78, by_lengths[measure] + 0.1), book
            assert by_words[measure] > by_vectors[measure] - 0.02, "docs/applications/alignment.md says so"


@full_and_small("--books", "luke", "mark")
def test_mining(run: Run, words: list[str]) -> None:
    found = {name: measures["F1"] for name, measures in run("mine_translations", *words).items()}
    for book in {name.split(":")[0] for name in found}:
        assert found[f"{book}: vectors, margin"] > max(0.93, found[f"{book}: vectors, cosine"]), book


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
        assert both > found["reworded: letters and words"]["F1"] + 0.005
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


@full_and_small("--texts", "20", "--labelled", "240", "--epochs", "1")
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
    if not words:  # 200 labelled texts, read once, are too few for fine-tuning
        assert min(own, tuned) > accuracy["words, linear model"]
        assert min(own, tuned) > accuracy["vectors, linear model"] + 0.03
        assert abs(own - tuned) < 0.03, "docs/applications/own_model.md says that pre-training makes no difference"


@pytest.mark.slow_examples  # tests/model/test_distill.py trains a student with fewer texts
@pytest.mark.timeout(TIMEOUT_S)
def test_a_student(tmp_path: Path) -> None:
    *_, found = tables_of(tmp_path, "distill_student")
    assert "</svg>" in (tmp_path / "student.svg").read_text()
    chosen, *others = (f"layers {layers}, " for layers in ("0 4 5", "0 2 4", "1 3 5"))
    for each in (chosen, *others):
        for measure in ("Spearman", "neighbours"):
            assert found[f"{each}trained"][measure] > found[f"{each}untrained"][measure] + 0.15
        assert found[f"{each}trained"]["accuracy"] > found["teacher"]["accuracy"] - 0.02
    for each in others:
        assert found[f"{chosen}untrained"]["Spearman"] > found[f"{each}untrained"]["Spearman"] + 0.1
        assert found[f"{chosen}trained"]["neighbours, manual"] > found[f"{each}trained"]["neighbours, manual"]


@full_and_small("--data", "definitions", "--trials", "28")
def test_drift(run: Run, words: list[str]) -> None:
    found = run("watch_drift", *words)
    assert found["definitions, new topic: 0%"]["vectors"] < (0.2 if words else 0.1)
    assert found["definitions, new topic: 50%"]["vectors"] > 0.95
    some = found["definitions, new topic: 20%"]
    assert some["vectors"] > max(some["words (TF-IDF)"], some["words (chi-square)"], some["length"])
    if not words:
        mails = found["mails, spam: 20%"]
        assert mails["words (TF-IDF)"] > mails["vectors"] + 0.08, "docs/applications/drift.md says so"
