"""Summaries of the pages of Python's manual: which sentences say most of the whole page, beside the first ones.

    make serve                                          # in another terminal
    python examples/applications/summarize_manual.py    # a quarter of a minute on two cores

Needs the extra `examples`. docs/applications/summary.md explains the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from corpora import python_manual
from report import Vectors, connected, draw_bars, encoder_of_words, parser_of, show
from rouge_score.rouge_scorer import RougeScorer

WORDS = 60  # of a summary: it ends before the sentence that would exceed them
NEIGHBOURS = 0.3  # cosine of vectors above which two sentences support each other
SHARED_WORDS = 0.1  # the same for TF-IDF, as in the paper on LexRank
RNG = np.random.default_rng(0)
MEASURES = ("rouge1", "rouge2", "rougeL")


class Document(NamedTuple):
    """A page without its first paragraph, which its author wrote as an introduction: the summary to be found."""

    title: str
    summary: str
    sentences: list[str]


def documents() -> list[Document]:
    """Return the pages of the library reference that have an introduction and at least 20 sentences after it."""
    pages: dict[str, list[list[str]]] = {}
    titles = {}
    for section in python_manual("library"):
        pages.setdefault(section.path, []).append(section.paragraphs)
        titles[section.path] = section.page
    found = []
    for path, sections in pages.items():
        prose = [[p for p in paragraphs if _is_prose(p)] for paragraphs in sections]
        first, *rest = [p for paragraphs in prose for p in paragraphs] or [""]
        sentences = [s for p in rest for s in re.split(r"(?<=[.!?]) (?=[A-Z])", p) if 5 <= len(s.split()) <= WORDS]
        if len(first.split()) >= 15 and len(sentences) >= 20:
            found.append(Document(titles[path] or path, first, sentences))
    return found


def _is_prose(paragraph: str) -> bool:
    """Return whether a paragraph is text, and not a signature, a program or a table."""
    return paragraph[:1].isupper() and paragraph.endswith(".") and not re.search(r">>>|==|--\s*--", paragraph)


def central(vectors: Vectors, similar: float = NEIGHBOURS) -> Sequence[int]:
    """Return the sentences by their centrality: PageRank over similar sentences (LexRank)."""
    return np.argsort(-lexrank(vectors, similar)).tolist()


def lexrank(vectors: Vectors, similar: float) -> Vectors:
    """Return how much each sentence is supported by similar ones, (N,), with the sum 1."""
    links = np.maximum(vectors @ vectors.T, 0)
    links[links < similar] = 0
    links /= links.sum(1, keepdims=True)
    scores = np.full(len(vectors), 1 / len(vectors))
    for _ in range(100):
        scores = 0.15 / len(vectors) + 0.85 * links.T @ scores
    return scores


def central_and_new(vectors: Vectors, similar: float = NEIGHBOURS) -> Sequence[int]:
    """Return the sentences by centrality, less their similarity to those before (MMR)."""
    scores = lexrank(vectors, similar)
    scores = scores / scores.max()
    repeated = np.zeros(len(vectors))
    order: list[int] = []
    while len(order) < min(len(vectors), 10):
        worth = 0.7 * scores - 0.3 * repeated
        worth[order] = -np.inf
        order.append(int(worth.argmax()))
        repeated = np.maximum(repeated, vectors @ vectors[order[-1]])
    return order


def close_to_the_mean(vectors: Vectors) -> Sequence[int]:
    """Return the sentences by their similarity to the mean of all."""
    return np.argsort(-(vectors @ vectors.mean(0))).tolist()


Way = Callable[[Vectors], Sequence[int]]
BEST = "central and new (LexRank, MMR)"
# What each line of the table uses, and one or more ways: then the mean of their scores counts.
WAYS: dict[str, tuple[str, list[Way]]] = {
    "random sentences": ("vectors", [lambda rows: RNG.permutation(len(rows)).tolist()] * 10),
    "first sentences": ("vectors", [lambda rows: range(len(rows))]),
    "closest to the mean": ("vectors", [close_to_the_mean]),
    "central (LexRank)": ("vectors", [central]),
    BEST: ("vectors", [central_and_new]),
    "words: central": ("words", [partial(central, similar=SHARED_WORDS)]),
    "words: central and new": ("words", [partial(central_and_new, similar=SHARED_WORDS)]),
}


def summary_of(sentences: Sequence[str], order: Sequence[int]) -> str:
    """Return the first sentences of an order, of at most WORDS words, as they follow each other in the text."""
    chosen: list[int] = []
    for i in order:
        if sum(len(sentences[j].split()) for j in [*chosen, i]) > WORDS:
            break
        chosen.append(i)
    return " ".join(sentences[i] for i in sorted(chosen))


def main() -> None:
    parser = parser_of(__doc__, "summary.svg")
    parser.add_argument("--pages", type=int, help="at most so many; default: all")
    args = parser.parse_args()

    found = documents()[: args.pages]
    print(f"{len(found)} pages, {sum(len(each.sentences) for each in found):,} sentences")
    with connected(args) as client:
        vectors = [client.encode(each.sentences, normalize=True) for each in found]
    rows = {"vectors": vectors, "words": [encoder_of_words(each.sentences)(each.sentences) for each in found]}
    scorer = RougeScorer(MEASURES, use_stemmer=True)

    def score(document: Document, rows: Vectors, ways: Sequence[Way]) -> Vectors:
        made = (summary_of(document.sentences, order_of(rows)) for order_of in ways)
        return np.mean([[s.fmeasure for s in scorer.score(document.summary, each).values()] for each in made], 0)

    results = {
        name: np.array([score(each, row, ways) for each, row in zip(found, rows[used], strict=True)])
        for name, (used, ways) in WAYS.items()
    }
    means = {name: dict(zip(MEASURES, scores.mean(0).tolist(), strict=True)) for name, scores in results.items()}
    show(means)
    for name in [name for name in means if name != BEST]:
        gain = (results[BEST] - results[name])[:, 0]
        error = gain.std() / len(gain) ** 0.5
        print(f"{BEST} less {name}: {gain.mean():+.3f} in ROUGE-1, standard error {error:.3f}")
    print(f"{found[0].title}\n    written: {found[0].summary}")
    print(f"    found:   {summary_of(found[0].sentences, central(vectors[0]))}")
    draw_bars(means, MEASURES[0], args.picture)


if __name__ == "__main__":
    main()
