"""Notices that a stream of texts changes: a test of a window of texts against a reference, by permutation.

    make serve                                       # in another terminal
    python examples/applications/watch_drift.py      # two minutes on two cores

Needs the extra `examples`. docs/applications/drift.md explains the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from corpora import Mail, definitions, mails
from report import Points, Vectors, connected, draw_curves, parser_of, show
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

REFERENCE, WINDOW = 500, 100  # mails
SHARES = (0.05, 0.1, 0.2, 0.5)  # of the window that are of the new kind
Line = dict[str, float]  # the alarms of each method
FALSE_ALARMS = 0.05  # the part of the windows without a change in which an alarm is accepted
PERMUTATIONS = 199


def distances(points: Vectors) -> Vectors:
    """Return the Euclidean distance of each point (a row) to each other one, as float32."""
    squares = (points**2).sum(1)
    found: Vectors = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * points @ points.T))
    return found.astype(np.float32)


def measures_of(texts: Sequence[str], vectors: Vectors) -> dict[str, Vectors]:
    """Return the distance of each two texts for each method. The vectors come first, then the baselines."""
    weights = TfidfVectorizer(sublinear_tf=True, min_df=3, dtype=np.float32).fit_transform(texts)
    counts = CountVectorizer(max_features=1_000, binary=True).fit_transform(texts).astype(np.float32)
    scaled = counts.multiply(1 / np.sqrt(counts.sum(0))).tocsr()  # its squared differences are those of chi-square
    return {
        "vectors": distances(vectors),
        "words (TF-IDF)": np.sqrt(np.maximum(0, 2 - 2 * (weights @ weights.T).toarray())),
        "words (chi-square)": -2 * (scaled @ scaled.T).toarray(),
        "length": distances(np.log([[len(text)] for text in texts])),
    }


def p_value(between: Vectors, window: int, rng: np.random.Generator) -> float:
    """Return the probability of at least this difference if the window is like the reference.

    between: the distances of all texts, those of the window last. The difference is the energy distance: twice
    the mean distance between window and reference, less the mean distances within each. It is compared with
    that of random windows out of all texts. With -2 * products for distances, it is that of the means, squared.
    """
    size = len(between)
    weights = np.full((size, 1 + PERMUTATIONS), -1 / (size - window), np.float32)
    weights[-window:, 0] = 1 / window
    for column in range(1, 1 + PERMUTATIONS):
        weights[rng.choice(size, window, replace=False), column] = 1 / window
    found = -np.einsum("ij,ij->j", weights, between @ weights)
    return float(np.mean(found >= found[0]))


def alarms(measures: dict[str, Vectors], groups: Vectors, kinds: Sequence[str], share: float, trials: int) -> Line:
    """Return the part of the trials in which each method gives an alarm. share: part of the window that is new.

    In each trial, another one of the kinds is the new one, the other groups are normal, and the texts of reference
    and window are drawn anew. Without a share, the kind is in neither of them.
    """
    rng = np.random.default_rng(0)
    num_new = round(share * WINDOW)
    found = dict.fromkeys(measures, 0)
    for trial in range(trials):
        is_new = groups == kinds[trial % len(kinds)]
        normal = rng.choice(np.flatnonzero(~is_new), REFERENCE + WINDOW - num_new, replace=False)
        some = np.concatenate([normal, rng.choice(np.flatnonzero(is_new), num_new, replace=False)])
        for name, between in measures.items():
            found[name] += p_value(between[np.ix_(some, some)], WINDOW, rng) <= FALSE_ALARMS
    return {name: number / trials for name, number in found.items()}


def energy(between: Vectors, reference: Vectors, window: Vectors) -> float:
    """Return the energy distance of a window from a reference, both as numbers of texts."""
    pairs = ((reference, window), (reference, reference), (window, window))
    across, within, inside = (float(between[np.ix_(a, b)].mean()) for a, b in pairs)
    return 2 * across - within - inside


def show_stream(stream: Sequence[Mail], between: Vectors) -> None:
    """Print what happens with real mails in their order, where a new source begins at a known time.

    Mails of the same days are often about the same, so windows differ more than random ones. So the threshold is
    the largest distance of a window in the reference from the rest of it. The permutation test is for comparison.
    """
    windows = np.arange(len(stream) // WINDOW * WINDOW).reshape(-1, WINDOW)
    first_news = next(i for i, window in enumerate(windows) if any(stream[j].group == "news" for j in window))
    half = first_news // 2
    reference = windows[:half].ravel()
    threshold = max(energy(between, np.delete(windows[:half], i, 0).ravel(), windows[i]) for i in range(half))
    rng = np.random.default_rng(0)
    print(f"the stream: {half} windows are the reference, and the largest distance among them is {threshold:.4f}")
    for i, window in enumerate(windows[half:], half):
        found = energy(between, reference, window)
        some = np.concatenate([rng.choice(reference, REFERENCE, replace=False), window])
        words = "alarm" if found > threshold else ""
        if p_value(between[np.ix_(some, some)], WINDOW, rng) <= FALSE_ALARMS:
            words += " (alarm by permutation)"
        news = np.mean([stream[j].group == "news" for j in window])
        print(
            f"    window {i} from {stream[window[0]].time:%d %B}: {news:4.0%} news, distance {found:.4f} {words}"
        )


def main() -> None:
    parser = parser_of(__doc__, "drift.svg")
    parser.add_argument("--trials", type=int, default=280)
    parser.add_argument("--data", nargs="+", choices=["mails", "definitions"], default=["definitions", "mails"])
    args = parser.parse_args()
    results: dict[str, Line] = {}
    for data in args.data:
        stream = [mail for mail in mails() if mail.group] if data == "mails" else []
        texts, groups = [mail.text for mail in stream], [mail.group for mail in stream]
        if data == "definitions":
            large = {name: some[:250] for name, some in definitions().items() if len(some) >= 2_000}
            texts = [text for some in large.values() for text in some]
            groups = [name for name in large for _ in range(250)]
        with connected(args) as client:
            vectors = client.encode(texts, normalize=True)
        measures, kinds = measures_of(texts, vectors), sorted(set(groups) - {"spam"})
        if stream:
            own = np.flatnonzero(np.array(groups) != "spam")
            show_stream([stream[i] for i in own], measures["vectors"][np.ix_(own, own)])
        for title, new in ((f"{data}, new topic", kinds), (f"{data}, spam", ["spam"] if stream else [])):
            known = np.flatnonzero(np.isin(groups, kinds + new))
            among = {name: each[np.ix_(known, known)] for name, each in measures.items()}
            for share in (0, *SHARES) if new else ():
                results[f"{title}: {share:.0%}"] = alarms(among, np.array(groups)[known], new, share, args.trials)
    show(results)
    first = [results[f"{args.data[0]}, new topic: {share:.0%}"] for share in (0, *SHARES)]
    curves: dict[str, Points] = {name: ((0, *SHARES), [each[name] for each in first]) for name in first[0]}
    labels = {"xlabel": "part of the window about a new topic", "ylabel": "part of the windows with an alarm"}
    draw_curves(curves, args.picture, title=args.data[0], ylim=(0, 1.02), **labels)


if __name__ == "__main__":
    main()
