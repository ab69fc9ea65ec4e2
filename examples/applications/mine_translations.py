"""Finds translations of each other in two heaps of sentences, by the margin of their cosine.

    make serve                                           # in another terminal
    python examples/applications/mine_translations.py    # a quarter of a minute on two cores

Needs the extra `examples`. If the server has a multilingual model, `--languages web sparv` takes English and
Spanish. docs/applications/alignment.md explains the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from bert_serving.client import BertClient
from corpora import bible
from report import Points, Vectors, connected, draw_curves, parser_of, show


def margins(cosines: Vectors) -> Vectors:
    """Return cosines (L, R), each divided by the mean of the four largest in its row and in its column."""
    rows, columns = (np.sort(each, 1)[:, -4:].mean(1) for each in (cosines, cosines.T))
    return cosines / ((rows[:, None] + columns[None]) / 2)


SCORES: dict[str, Callable[[Vectors], Vectors]] = {"cosine": lambda cosines: cosines, "margin": margins}


def best_pairs(scored: Vectors) -> list[tuple[float, tuple[int, int]]]:
    """Return the pairs that are each other's best, with their scores, best first."""
    to_right, to_left = scored.argmax(1), scored.argmax(0)
    found = [(float(scored[i, j]), (i, int(j))) for i, j in enumerate(to_right) if to_left[j] == i]
    return sorted(found, reverse=True)


def mined(scored: Vectors, true: set[tuple[int, int]], threshold: float | None) -> tuple[float, float, float]:
    """Return precision, recall and threshold. Without a threshold, take the one with the best F1."""
    pairs = best_pairs(scored)
    if threshold is None:
        right = np.cumsum([pair in true for _, pair in pairs])
        threshold = pairs[int(np.argmax(right / (np.arange(1, len(pairs) + 1) + len(true))))][0]
    found = {pair for score, pair in pairs if score >= threshold}
    return len(found & true) / max(1, len(found)), len(found & true) / len(true), threshold


def heaps(client: BertClient, languages: Sequence[str], book: str) -> tuple[Vectors, set[tuple[int, int]]]:
    """Return the cosines of two heaps of verses, and the true pairs. Half of each heap has no translation.

    The first third of a book is only on the left, the last third only on the right.
    """
    both = [verses for verses in zip(*(bible(v, book) for v in languages), strict=True) if all(verses)]
    third = len(both) // 3
    order = np.random.default_rng(0).permutation(len(both) - third)
    left = client.encode([verses[0] for verses in both[: 2 * third]], normalize=True)
    right = client.encode([both[third + i][1] for i in order], normalize=True)
    return left @ right.T, {(third + int(i), place) for place, i in enumerate(order) if i < third}


def main() -> None:
    parser = parser_of(__doc__, "mining.svg")
    parser.add_argument("--languages", nargs=2, default=["kjv", "web"], metavar="VERSION")
    parser.add_argument(
        "--books", nargs="+", default=["luke", "mark", "acts", "romans"], help="the first one is for training"
    )
    args = parser.parse_args()
    if len(args.books) < 2:
        parser.error("--books must name at least two books: one for the threshold, and one for the test")
    with connected(args) as client:
        found = {book: heaps(client, args.languages, book) for book in args.books}
    first, *others = args.books
    results: dict[str, dict[str, float]] = {book: {} for book in others}
    curves: dict[str, Points] = {}
    for name, score in SCORES.items():
        scored, true = score(found[first][0]), found[first][1]
        threshold = mined(scored, true, None)[2]
        for book in others:
            scored, true = score(found[book][0]), found[book][1]
            precision, recall, _ = mined(scored, true, threshold)
            results[book] |= {f"precision by {name}": precision, f"recall by {name}": recall}
        curve = [mined(scored, true, each)[:2] for each, _ in best_pairs(scored)[::5]]
        curves[name] = ([recall for _, recall in curve], [precision for precision, _ in curve])
    show(results)
    draw_curves(curves, args.picture, xlabel="recall", ylabel="precision", title=book)


if __name__ == "__main__":
    main()
