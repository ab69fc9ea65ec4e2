"""Finds translations of each other in two heaps of sentences, by the margin of their cosine.

    make serve                                           # in another terminal
    python examples/applications/mine_translations.py    # a quarter of a minute on two cores

Needs the extra `examples`. If the server has a multilingual model, `--languages web sparv` takes English and
Spanish. docs/applications/alignment.md explains the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from corpora import bible
from report import Encode, Points, Vectors, connected, draw_curves, encoder_of_words, parser_of, show

Heaps = tuple[list[str], list[str], set[tuple[int, int]]]  # texts of both sides, and which belong together


def margins(cosines: Vectors) -> Vectors:
    """Return cosines (L, R), each divided by the mean of the four largest in its row and in its column."""
    rows, columns = (np.sort(each, 1)[:, -4:].mean(1) for each in (cosines, cosines.T))
    return cosines / ((rows[:, None] + columns[None]) / 2)


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


def heaps(languages: Sequence[str], book: str) -> Heaps:
    """Return two heaps of verses, and the true pairs. Half of each heap has no translation.

    The first third of a book is only on the left, the last third only on the right.
    """
    both = [verses for verses in zip(*(bible(v, book) for v in languages), strict=True) if all(verses)]
    third = len(both) // 3
    order = np.random.default_rng(0).permutation(len(both) - third)
    left, right = [verses[0] for verses in both[: 2 * third]], [both[third + i][1] for i in order]
    return left, right, {(third + int(i), place) for place, i in enumerate(order) if i < third}


def cosines_of(encode: Encode, left: list[str], right: list[str]) -> Vectors:
    """Return the cosine of each text on the left with each one on the right, (L, R)."""
    cosines: Vectors = encode(left) @ encode(right).T
    return cosines


def main() -> None:
    parser = parser_of(__doc__, "mining.svg")
    parser.add_argument("--languages", nargs=2, default=["kjv", "web"], metavar="VERSION")
    parser.add_argument(
        "--books", nargs="+", default=["luke", "mark", "acts", "romans"], help="the first one is for training"
    )
    args = parser.parse_args()
    if len(args.books) < 2:
        parser.error("--books must name at least two books: one for the threshold, and one for the test")
    found = {book: heaps(args.languages, book) for book in args.books}
    by_words = {book: cosines_of(encoder_of_words([*a, *b]), a, b) for book, (a, b, _) in found.items()}
    with connected(args) as client:
        encode = partial(client.encode, normalize=True)
        by_vectors = {book: cosines_of(encode, a, b) for book, (a, b, _) in found.items()}
    first, *others = args.books
    results: dict[str, dict[str, float]] = {}
    curves: dict[str, Points] = {}
    for kind, cosines in (("words", by_words), ("vectors", by_vectors)):
        with_margin = {book: margins(each) for book, each in cosines.items()}
        for name, scored in ((f"{kind}, cosine", cosines), (f"{kind}, margin", with_margin)):
            threshold = mined(scored[first], found[first][2], None)[2]
            for book in others:
                true = found[book][2]
                precision, recall, _ = mined(scored[book], true, threshold)
                f1 = 2 * precision * recall / (precision + recall)
                results[f"{book}: {name}"] = {"precision": precision, "recall": recall, "F1": f1}
            curve = [mined(scored[book], true, each)[:2] for each, _ in best_pairs(scored[book])[::5]]
            curves[name] = ([recall for _, recall in curve], [precision for precision, _ in curve])
    print(", ".join(f"{book}: {len(found[book][2])} true pairs" for book in others))
    show(results)
    draw_curves(curves, args.picture, xlabel="recall", ylabel="precision", title=book)


if __name__ == "__main__":
    main()
