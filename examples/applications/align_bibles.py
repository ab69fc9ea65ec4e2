"""Which sentences of two translations belong together? Found by vectors, beside the words and the lengths.

    make serve                                        # in another terminal
    python examples/applications/align_bibles.py      # half a minute on two cores

Needs the extra `examples`. If the server has a multilingual model, `--languages web sparv` takes English and
Spanish. docs/applications/alignment.md explains the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from corpora import bible
from report import Encode, Vectors, connected, draw_bars, encoder_of_words, parser_of, show

Block = tuple[frozenset[int], frozenset[int]]  # the sentences of both sides that belong together
Cost = Callable[[int, int, int, int], float]
MOVES = ((1, 1), (1, 2), (2, 1), (1, 0), (0, 1))  # how many sentences of each side a block has
MOVES_OF_LENGTHS = (*MOVES, (2, 2))  # those of Gale and Church
LOST, MERGED, MOVED = 0.05, 0.2, 0.2  # the parts of the verses that are disturbed


def disturbed(verses: Sequence[str], rng: np.random.Generator) -> list[tuple[str, set[int]]]:
    """Return sentences and their verses: some verses are lost, some merged, some borders in the wrong place."""
    found: list[tuple[str, set[int]]] = []
    carried: list[str] = []
    for number, verse in enumerate(verses):
        if rng.random() < LOST or not verse:
            continue
        words = carried + verse.split()
        carried = []
        if rng.random() < MOVED:
            keep = len(words) - int(rng.integers(1, max(2, len(words) // 4)))
            words, carried = words[:keep], words[keep:]
        if found and rng.random() < MERGED and len(found[-1][1]) == 1:
            found[-1] = (" ".join([found[-1][0], *words]), found[-1][1] | {number})
        else:
            found.append((" ".join(words), {number}))
    return found


def true_blocks(left: Sequence[set[int]], right: Sequence[set[int]]) -> set[Block]:
    """Return the smallest blocks such that sentences with a verse in common are in one block."""
    blocks: list[tuple[set[int], set[int], set[int]]] = []
    for side, units in enumerate((left, right)):
        for i, verses in enumerate(units):
            new: tuple[set[int], set[int], set[int]] = (set(), set(), set(verses))
            new[side].add(i)
            for block in [b for b in blocks if b[2] & verses]:
                blocks.remove(block)
                for own, others in zip(new, block, strict=True):
                    own.update(others)
            blocks.append(new)
    return {(frozenset(a), frozenset(b)) for a, b, _ in blocks if a and b}


def aligned(num_left: int, num_right: int, cost: Cost, moves: Sequence[tuple[int, int]] = MOVES) -> set[Block]:
    """Return the blocks with the lowest sum of costs. cost(i, a, j, b): of left[i:i + a] with right[j:j + b]."""
    best = np.full((num_left + 1, num_right + 1), np.inf)
    best[0, 0] = 0
    came: dict[tuple[int, int], tuple[int, int]] = {}
    for i in range(num_left + 1):
        middle = i * num_right // num_left
        for j in range(max(0, middle - 60), min(num_right, middle + 60) + 1):
            for a, b in moves:
                if a <= i and b <= j and best[i - a, j - b] < np.inf:
                    total = best[i - a, j - b] + cost(i - a, a, j - b, b)
                    if total < best[i, j]:
                        best[i, j], came[i, j] = total, (a, b)
    i, j, blocks = num_left, num_right, set()
    while i or j:
        a, b = came[i, j]
        i, j = i - a, j - b
        if a and b:
            blocks.add((frozenset(range(i, i + a)), frozenset(range(j, j + b))))
    return blocks


def cost_of_content(encode: Encode, left: Sequence[str], right: Sequence[str]) -> Cost:
    """Return Vecalign's cost: the distance of two blocks, relative to their distances from random sentences."""
    rng = np.random.default_rng(0)
    vectors: dict[tuple[int, int, int], Vectors] = {}
    others: list[Vectors] = []
    for side, texts in enumerate((left, right)):
        joined = {(side, i, n): " ".join(texts[i : i + n]) for n in (1, 2) for i in range(len(texts) + 1 - n)}
        rows = encode(list(joined.values()))
        vectors |= dict(zip(joined, rows, strict=True))
        others.append(rows[rng.choice(len(texts), 100)])
    usual = {key: 1 - float(np.mean(others[1 - key[0]] @ row)) for key, row in vectors.items()}

    def relative(x: tuple[int, int, int], y: tuple[int, int, int]) -> float:
        return 2 * (1 - float(vectors[x] @ vectors[y])) / (usual[x] + usual[y])

    # To leave two sentences out costs as much as to align a pair that is closer than four fifths of random ones.
    pairs = zip(*(rng.integers(0, len(texts), 1000) for texts in (left, right)), strict=True)
    skip = float(np.quantile([relative((0, i, 1), (1, j, 1)) for i, j in pairs], 0.2)) / 2
    return lambda i, a, j, b: a * b * relative((0, i, a), (1, j, b)) if a and b else skip


def cost_of_lengths(left: Sequence[str], right: Sequence[str]) -> Cost:
    """Return the cost of Gale and Church (1993): how surprising the lengths of two blocks are."""
    sizes = [np.array([len(text) for text in texts]) for texts in (left, right)]
    usual = {1: 0.005, 2: 0.89, 3: 0.0445, 4: 0.011}  # the probability of a block, by its number of sentences

    def cost(i: int, a: int, j: int, b: int) -> float:
        one, two = sizes[0][i : i + a].sum(), sizes[1][j : j + b].sum()
        deviation = (two - one) / math.sqrt((one + two) / 2 * 6.8)
        return -math.log(usual[a + b]) - math.log(max(math.erfc(abs(deviation) / math.sqrt(2)), 1e-12))

    return cost


def scores(found: set[Block], true: set[Block]) -> tuple[float, float]:
    """Return precision and recall of what was found."""
    return len(found & true) / max(1, len(found)), len(found & true) / len(true)


def main() -> None:
    parser = parser_of(__doc__, "alignment.svg")
    parser.add_argument("--languages", nargs=2, default=["kjv", "web"], metavar="VERSION")
    parser.add_argument("--books", nargs="+", default=["mark", "acts", "romans"])
    args = parser.parse_args()
    results = {}
    with connected(args) as client:
        for book in args.books:
            rng = np.random.default_rng(1)
            sides = [disturbed(bible(version, book), rng) for version in args.languages]
            texts = [[text for text, _ in side] for side in sides]
            true = true_blocks(*([verses for _, verses in side] for side in sides))
            print(f"{book}: {len(true)} blocks")
            words, vectors = encoder_of_words(texts[0] + texts[1]), partial(client.encode, normalize=True)
            ways: dict[str, tuple[Cost, Sequence[tuple[int, int]]]] = {
                "lengths": (cost_of_lengths(*texts), MOVES_OF_LENGTHS),
                "words": (cost_of_content(words, *texts), MOVES),
                "vectors": (cost_of_content(vectors, *texts), MOVES),
            }
            for name, (cost, moves) in ways.items():
                precision, recall = scores(aligned(len(texts[0]), len(texts[1]), cost, moves), true)
                results[f"{book}: {name}"] = {"precision": precision, "recall": recall}
    show(results)
    draw_bars(results, "recall", args.picture)


if __name__ == "__main__":
    main()
