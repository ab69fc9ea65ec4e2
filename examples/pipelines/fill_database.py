"""Fill a vector database with bert-serving-encode, and ask it the questions of Python's FAQ.

    make serve                                        # in another terminal
    python examples/pipelines/fill_database.py        # some minutes on two cores

Needs the extras `files` and `examples`. docs/applications/pipelines.md explains the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import lancedb
import numpy as np
import pyarrow.dataset
from lancedb.index import HnswSq

sys.path.append(str(Path(__file__).parents[1] / "applications"))

from corpora import Section, passages_of, python_manual
from report import Vectors, show

PASSAGE_CHARS = 400  # of one passage, if its paragraphs allow it
DEPTH = 10  # passages that each search returns


def write_texts(path: Path, sections: Sequence[Section]) -> None:
    """Write the passages of the sections as JSON lines: the text, and the number of its section."""
    with path.open("w", encoding="utf-8") as file:
        for number, passage in enumerate(passages_of(sections, PASSAGE_CHARS)):
            file.write(json.dumps({"id": number, "section": passage.section, "text": passage.text}) + "\n")


def vectors_of(url: str, texts: Sequence[str]) -> Vectors:
    """Return the vectors of texts, over HTTP."""
    reply = httpx.post(f"{url}/v1/embeddings", json={"model": "any", "input": texts}, timeout=60)
    return np.array([item["embedding"] for item in reply.raise_for_status().json()["data"]], np.float32)


def found_in(table: Any, questions: Vectors) -> Vectors:
    """Return the ids of the passages that the table finds, best first, (questions, DEPTH). Prints the time."""
    start = time.perf_counter()
    found = []
    for question in questions:
        search = table.search(question).distance_type("cosine").select(["id", "_distance"]).limit(DEPTH)
        found.append([row["id"] for row in search.to_list()])
    ms = 1000 * (time.perf_counter() - start) / len(questions)
    print(f"    {ms:.1f} ms for each question; indices: {[each.index_type for each in table.list_indices()]}")
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:5555:5556", help="for the passages: HOST:PORT:PORT_OUT")
    parser.add_argument("--url", default="http://127.0.0.1:8125", help="of the same server, for the questions")
    parser.add_argument("--folders", nargs="*", default=[], help="of the manual, faq is one; default: all")
    args = parser.parse_args()

    sections = python_manual(*args.folders)
    answers = [i for i, s in enumerate(sections) if s.path.startswith("faq/") and s.heading.endswith("?")]
    with tempfile.TemporaryDirectory() as made:
        texts, vectors = Path(made) / "texts.jsonl", Path(made) / "vectors.parquet"
        write_texts(texts, sections)
        encode = ["bert-serving-encode", texts, "-columns", "*", "-server", args.server, "-o", vectors]
        subprocess.run(encode, check=True)

        # The database reads the file in parts, so the file may be larger than the memory.
        database = lancedb.connect(f"{made}/database")
        table = database.create_table("passages", pyarrow.dataset.dataset(vectors))
        asked = vectors_of(args.url, [sections[i].heading for i in answers])
        rankings = {"database": found_in(table, asked)}
        table.create_index("vector", config=HnswSq(distance_type="cosine"))
        rankings["database, index"] = found_in(table, asked)
        rows = table.to_arrow().sort_by("id")

    stored = np.stack(rows["vector"].to_numpy(zero_copy_only=False))
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    exact = np.argsort(-asked @ stored.T, axis=1)[:, :DEPTH]
    section_of = rows["section"].to_numpy()
    results = {}
    for name, found in {"exact, by NumPy": exact, **rankings}.items():
        is_right = (section_of[found] == np.array(answers)[:, None]).any(1)
        same = [len({*one} & {*other}) / DEPTH for one, other in zip(found, exact, strict=True)]
        results[name] = {"recall@10": float(np.mean(is_right)), "as exact": float(np.mean(same))}
    print(f"{len(rows):,} passages, {len(answers)} questions")
    show(results)


if __name__ == "__main__":
    main()
