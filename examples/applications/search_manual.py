"""Questions to Python's manual: which of 27,000 passages answers them? Several ways of search, in one table.

    make serve                                        # in another terminal
    python examples/applications/search_manual.py     # five minutes on two cores

Needs the extra `examples`. docs/applications/search.md explains the result.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Sequence

import bm25s
import faiss
import httpx
import numpy as np
from bert_serving.client import BertClient
from corpora import Passage, passages_of, python_manual
from report import Vectors, connected, draw_bars, parser_of, show
from Stemmer import Stemmer

PASSAGE_CHARS = 400  # of one passage, if its paragraphs allow it
CONTEXT_CHARS = 1_000  # of what the model reads at once for late chunking: about its 256 tokens
DEPTH = 100  # passages that each search returns


def contexts(passages: Sequence[Passage]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yield texts of passages that follow each other in a section, and where each passage is in them."""
    text, section = "", None
    spans: list[tuple[int, int]] = []
    for passage in passages:
        if spans and (passage.section != section or len(text) + len(passage.text) > CONTEXT_CHARS):
            yield text, spans
            text, spans = "", []
        text, section = f"{text} {passage.text}" if text else passage.text, passage.section
        spans.append((len(text) - len(passage.text), len(text)))
    yield text, spans


def late_chunks(client: BertClient, passages: Sequence[Passage]) -> Vectors:
    """Return the vectors of passages whose tokens the model has seen beside those of their neighbours."""
    texts, spans = zip(*contexts(passages), strict=True)
    vectors = np.concatenate(client.encode_spans(list(texts), list(spans), long_text="chunk"))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def found_by_words(passages: Sequence[Passage], questions: Sequence[str]) -> Vectors:
    """Return the numbers of the passages that BM25 finds, best first, (questions, DEPTH)."""
    words = functools.partial(bm25s.tokenize, stemmer=Stemmer("english"), show_progress=False)
    index = bm25s.BM25()
    index.index(words([passage.text for passage in passages]), show_progress=False)
    return index.retrieve(words(list(questions)), k=DEPTH, show_progress=False)[0]


def found_by_vectors(index: faiss.Index, vectors: Vectors, questions: Vectors) -> Vectors:
    """Return the same for an index, to which the vectors are added first. Prints the times."""
    start = time.perf_counter()
    index.add(vectors)
    added = time.perf_counter()
    found = index.search(questions, DEPTH)[1]
    ms = 1000 * (time.perf_counter() - added) / len(questions)
    print(f"    {type(index).__name__}: made in {added - start:.1f} s, {ms:.2f} ms for each question")
    return found


def fused(*rankings: Vectors) -> Vectors:
    """Return the passages by the sum of 1 / (60 + rank) over several rankings (reciprocal rank fusion)."""
    found = []
    for of_question in zip(*rankings, strict=True):
        scores: dict[int, float] = {}
        for ranking in of_question:
            for rank, passage in enumerate(ranking):
                scores[passage] = scores.get(passage, 0) + 1 / (60 + rank)
        found.append(sorted(scores, key=scores.__getitem__, reverse=True)[:DEPTH])
    return np.array(found)


def reranked(url: str, ranking: Vectors, questions: Sequence[str], passages: Sequence[Passage]) -> Vectors:
    """Return a ranking whose first 20 passages a reranker has put in order, over POST /rerank."""
    best = []
    for question, found in zip(questions, ranking, strict=True):
        texts = [passages[i].text for i in found[:20]]
        response = httpx.post(
            f"{url}/rerank", json={"query": question, "texts": texts, "truncate": True}, timeout=60
        )
        best.append([found[each["index"]] for each in response.raise_for_status().json()])
    return np.concatenate([best, ranking[:, 20:]], axis=1)


def quality(ranking: Vectors, passages: Sequence[Passage], answers: Sequence[int]) -> dict[str, float]:
    """Return recall@1, @5, @10 and MRR@10: how soon the first passage of the right section comes."""
    sections = np.array([passage.section for passage in passages])
    is_right = sections[ranking[:, :10]] == np.array(answers)[:, None]
    rank = np.where(is_right.any(1), is_right.argmax(1), 10)
    found = {f"recall@{k}": float(np.mean(rank < k)) for k in (1, 5, 10)}
    return {**found, "MRR@10": float(np.mean(np.where(rank < 10, 1 / (rank + 1), 0)))}


def main() -> None:
    parser = parser_of(__doc__, "search.svg")
    parser.add_argument("--folders", nargs="*", default=[], help="of the manual, faq is one; default: all")
    parser.add_argument("--reranker", help="address of a server with a reranker, such as http://localhost:8125")
    args = parser.parse_args()

    sections = python_manual(*args.folders)
    passages = passages_of(sections, PASSAGE_CHARS)
    answers = [i for i, s in enumerate(sections) if s.path.startswith("faq/") and s.heading.endswith("?")]
    questions = [sections[i].heading for i in answers]
    print(f"{len(passages):,} passages, {len(questions)} questions")
    with connected(args) as client:
        asked = client.encode(questions, normalize=True)
        start = time.perf_counter()
        plain = client.encode([p.text for p in passages], normalize=True)
        print(f"vectors of passages: {time.perf_counter() - start:.0f} s")
        with_page = client.encode([f"{p.page}: {p.text}" for p in passages], normalize=True)
        late = late_chunks(client, passages)
        rankings = {"words (BM25)": found_by_words(passages, questions)}
        width = plain.shape[1]
        rankings["vectors"] = found_by_vectors(faiss.IndexFlatIP(width), plain, asked)
        graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        rankings["vectors, approximate index"] = found_by_vectors(graph, plain, asked)
        rankings["vectors, late chunking"] = found_by_vectors(faiss.IndexFlatIP(width), late, asked)
        rankings["vectors, title of page + text"] = found_by_vectors(faiss.IndexFlatIP(width), with_page, asked)
        rankings["words and vectors"] = fused(rankings["words (BM25)"], rankings["vectors"])
        if args.reranker:
            best = rankings["vectors, late chunking"]
            rankings["late chunking, reranked"] = reranked(args.reranker, best, questions, passages)
        results = {name: quality(found, passages, answers) for name, found in rankings.items()}
        for question, found in list(zip(questions, rankings["vectors, late chunking"], strict=True))[:3]:
            sentences = re.split(r"(?<=[.!?]) ", " ".join(passages[i].text for i in found[:3]))
            scores = client.encode(sentences, normalize=True) @ client.encode([question], normalize=True)[0]
            print(f"{question}\n    {sentences[scores.argmax()]}")

    show(results)
    draw_bars(results, "MRR@10", args.picture)


if __name__ == "__main__":
    main()
