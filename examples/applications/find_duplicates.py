"""Finds texts that say the same: verses that were copied with errors, and verses in other words.

    make serve                                           # in another terminal
    python examples/applications/find_duplicates.py      # six minutes on two cores

Needs the extra `examples`. docs/applications/duplicates.md explains the result.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import faiss
import numpy as np
from corpora import books_of_bible, verses_twice
from report import Points, Vectors, connected, draw_curves, parser_of, show
from sklearn.feature_extraction.text import TfidfVectorizer

Pair = tuple[int, int]  # the numbers of two texts, the smaller one first
Pairs = dict[Pair, float]  # with their scores
Half = tuple[list[str], Vectors, list[int]]  # texts, vectors, and the verse of each second text
Method = Callable[[Sequence[str], Vectors], Pairs]
NEIGHBOURS = 5  # that are looked up for each text


def pairs_of(scores: Vectors, numbers: Vectors, start: int = 0) -> Pairs:
    """Return the pairs of each text (a row; the first one is number start) and its neighbours."""
    found: Pairs = {}
    for i, (row, cosines) in enumerate(zip(numbers, scores, strict=True), start):
        for j, score in zip(row, cosines, strict=True):
            if j not in (i, -1):  # -1: the index found no more
                found[min(i, int(j)), max(i, int(j))] = float(score)
    return found


def by_vectors(texts: Sequence[str], vectors: Vectors, approximate: bool = False) -> Pairs:
    """Return the pairs whose vectors are close. approximate: with a graph (HNSW), which scales to millions."""
    size = vectors.shape[1]
    index = faiss.IndexHNSWFlat(size, 32, faiss.METRIC_INNER_PRODUCT) if approximate else faiss.IndexFlatIP(size)
    index.add(vectors)
    return pairs_of(*index.search(vectors, NEIGHBOURS + 1))


def by_sums(texts: Sequence[str], vectors: Vectors | None, *kinds: dict[str, Any]) -> Pairs:
    """Return the pairs with the largest sum of cosines: of the TF-IDF of each kind, and of the vectors, if given.

    kinds: arguments of TfidfVectorizer.
    """
    weights = [
        TfidfVectorizer(sublinear_tf=True, min_df=2, dtype=np.float32, **kind).fit_transform(texts)
        for kind in kinds
    ]
    found: Pairs = {}
    for start in range(0, len(texts), 500):
        cosines = sum((each[start : start + 500] @ each.T).toarray() for each in weights)
        cosines += 0 if vectors is None else vectors[start : start + 500] @ vectors.T
        numbers = np.argpartition(-cosines, NEIGHBOURS + 1)[:, : NEIGHBOURS + 1]
        found |= pairs_of(np.take_along_axis(cosines, numbers, 1), numbers, start)
    return found


def sorted_pairs(pairs: Pairs, half: Half) -> tuple[list[Pair], Vectors, Vectors]:
    """Return the pairs of a verse and a second text, best first, their scores, and whether each is right.

    Other pairs do not count: the Bible repeats itself, and where it does is not known.
    """
    texts, _, same_as = half
    first = len(texts) - len(same_as)
    ordered = sorted((pair for pair in pairs if pair[0] < first <= pair[1]), key=pairs.__getitem__, reverse=True)
    right = [same_as[j - first] == i for i, j in ordered]
    return ordered, np.array([pairs[pair] for pair in ordered]), np.array(right)


def have_few_words_in_common(one: str, other: str) -> bool:
    """Return whether less than a third of the different words of two texts are in both."""
    words, others = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return 3 * len(words & others) < len(words | others)


def measured(method: Method, chosen: Half, tested: Half) -> tuple[dict[str, float], Points]:
    """Return the quality in the tested half with the best threshold of the other, and a curve."""
    _, scores, right = sorted_pairs(method(*chosen[:2]), chosen)
    # F1 = 2 * right pairs / (found pairs + true pairs)
    threshold = scores[np.argmax(np.cumsum(right) / (np.arange(1, len(right) + 1) + len(chosen[2])))]
    start = time.perf_counter()
    pairs, scores, right = sorted_pairs(method(*tested[:2]), tested)
    print(f"    threshold {threshold:.2f}, {time.perf_counter() - start:.0f} s for {len(tested[0]):,} texts")
    texts, _, same_as = tested
    few = {
        (i, j)
        for j, i in enumerate(same_as, len(texts) - len(same_as))
        if have_few_words_in_common(texts[i], texts[j])
    }
    print(f"    {len(few):,} of {len(same_as):,} pairs share few words")
    found = {pair for pair, score, good in zip(pairs, scores, right, strict=True) if good and score >= threshold}
    precision, recall = len(found) / np.sum(scores >= threshold), len(found) / len(same_as)
    figures = {"precision": precision, "recall": recall, "F1": 2 * precision * recall / (precision + recall)}
    figures["recall, few shared"] = len(found & few) / max(1, len(few))
    every = np.arange(0, len(right), 1 + len(right) // 300)
    rights = np.cumsum(right)[every]
    return figures, (list(rights / len(same_as)), list(rights / (every + 1)))


def main() -> None:
    parser = parser_of(__doc__, "duplicates.svg")
    parser.add_argument("--books", nargs="+", help="each second one is for the thresholds; default: all")
    args = parser.parse_args()
    books = args.books or books_of_bible()
    if len(books) < 2:
        parser.error("--books must name at least two books: one for the threshold, and one for the test")
    halves: dict[str, list[Half]] = {"copies": [], "reworded": []}
    with connected(args) as client:
        for some in (books[1::2], books[::2]):
            verses, seconds_of, same_as = verses_twice(some)
            start = time.perf_counter()
            old, *new = (client.encode(each, normalize=True) for each in (verses, *seconds_of.values()))
            print(
                f"{len(old):,} + 2 * {len(same_as):,} texts: {time.perf_counter() - start:.0f} s for the vectors"
            )
            for (kind, seconds), vectors in zip(seconds_of.items(), new, strict=True):
                halves[kind].append((verses + seconds, np.concatenate([old, vectors]), same_as))
    results: dict[str, dict[str, float]] = {}
    curves: dict[str, Points] = {}
    for kind, (chosen, tested) in halves.items():
        for name, method in METHODS.items():
            print(f"{kind}: {name}")
            results[f"{kind}: {name}"], curves[name] = measured(method, chosen, tested)
    show(results)
    draw_curves(curves, args.picture, xlabel="recall", ylabel="precision", title="verses in other words")


WORDS: dict[str, Any] = {}
LETTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (4, 4), "max_df": 0.1}  # four that few texts have
METHODS: dict[str, Method] = {
    "vectors": by_vectors,
    "HNSW": partial(by_vectors, approximate=True),
    "words": lambda texts, vectors: by_sums(texts, None, WORDS),
    "letters": lambda texts, vectors: by_sums(texts, None, LETTERS),
    "letters and words": lambda texts, vectors: by_sums(texts, None, LETTERS, WORDS),
    "words and vectors": lambda texts, vectors: by_sums(texts, vectors, WORDS),
    "letters and vectors": lambda texts, vectors: by_sums(texts, vectors, LETTERS),
}

if __name__ == "__main__":
    main()
