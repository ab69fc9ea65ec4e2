"""Are these reviews positive? A linear model on vectors beside a bag of words, with 10 to 10,000 labelled texts.

    make serve                                                        # in another terminal
    python examples/applications/classify_reviews.py                  # half a minute on two cores
    python examples/applications/classify_reviews.py --source imdb    # long reviews; three minutes

Needs the extra `examples`. docs/applications/classification.md explains the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bert_serving.client import BertClient
from corpora import movie_reviews
from report import Points, Vectors, connected, draw_curves, parser_of, show
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline

SIZES = (10, 30, 100, 300, 1_000, 3_000, 7_000, 10_000)
REPEATS = 5  # with different training texts, because few of them make a difference
DESCRIPTIONS = {
    0: "I hated it. A bad film, boring, a waste of time.",
    1: "I loved it. A great film, moving and fun.",
}


def of_vectors() -> Any:
    """Return a linear model. Its regularization is chosen by cross-validation on the training texts."""
    return LogisticRegressionCV(Cs=np.logspace(-1, 4, 6), cv=3, max_iter=2000)


def of_words() -> Any:
    """Return the baseline: the same linear model on words and pairs of words, weighted with TF-IDF."""
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), of_vectors())


def accuracies(
    make: Callable[[], Any], inputs: Sequence[Any], labels: np.ndarray, num_test: int
) -> dict[int, list[float]]:
    """Return the accuracies on the first `num_test` texts, for each number of training texts.

    The training texts are taken from the rest, half of them positive. Prints the time of the last training.
    """
    rng = np.random.default_rng(0)
    found: dict[int, list[float]] = {}
    pools = [num_test + np.flatnonzero(labels[num_test:] == label) for label in (0, 1)]
    for size in SIZES:
        if size > 2 * min(map(len, pools)):
            break
        for _ in range(REPEATS if size <= 1_000 else 1):
            some = np.concatenate([rng.choice(pool, size // 2, replace=False) for pool in pools])
            start = time.perf_counter()
            model = make().fit([inputs[i] for i in some], labels[some])
            seconds = time.perf_counter() - start
            found.setdefault(size, []).append(model.score(inputs[:num_test], labels[:num_test]))
    print(f"    {seconds:.1f} s to train with {max(found):,} texts")
    print("    of 100 negative and of 100 positive reviews, called negative and positive:")
    table = confusion_matrix(labels[:num_test], model.predict(inputs[:num_test]), normalize="true")
    for row in 100 * table:
        print(f"        {row[0]:3.0f} {row[1]:3.0f}")
    return found


def zero_shot(client: BertClient, vectors: Vectors, labels: np.ndarray) -> float:
    """Return the accuracy without any labelled text: each review gets the label whose description is closer."""
    names = client.encode(list(DESCRIPTIONS.values()), normalize=True)
    scores = vectors @ names.T
    return float(np.mean(scores.argmax(1) == labels))


def main() -> None:
    parser = parser_of(__doc__, "classification.svg")
    parser.add_argument("--source", choices=["rotten_tomatoes", "imdb"], default="rotten_tomatoes")
    parser.add_argument("--texts", type=int, default=12_500, help="of which the first sixth is for tests")
    args = parser.parse_args()

    texts, targets = movie_reviews(args.source)
    texts, labels = texts[: args.texts], np.array(targets[: args.texts])
    num_test = len(texts) // 6
    with connected(args) as client:
        start = time.perf_counter()
        vectors = client.encode(texts, normalize=True)
        print(f"{len(texts):,} texts became vectors in {time.perf_counter() - start:.0f} s")
        alone = zero_shot(client, vectors[:num_test], labels[:num_test])
    print(f"no labelled texts: accuracy {alone:.3f}, of {num_test:,} reviews")
    curves: dict[str, dict[int, list[float]]] = {}
    for name, make, inputs in (("vectors", of_vectors, list(vectors)), ("bag of words", of_words, texts)):
        print(name)
        curves[name] = accuracies(make, inputs, labels, num_test)
    means = {name: {size: float(np.mean(each)) for size, each in found.items()} for name, found in curves.items()}
    show({f"{size:,} labelled texts": {name: means[name][size] for name in means} for size in means["vectors"]})
    for name, drawn in curves.items():
        print(f"{name}: standard error from the choice of the training texts, by their number:")
        errors = [(size, np.std(each, ddof=1) / len(each) ** 0.5) for size, each in drawn.items() if len(each) > 1]
        print("    " + ", ".join(f"{size:,}: {error:.3f}" for size, error in errors))
    lines: dict[str, Points] = {name: (list(found), list(found.values())) for name, found in means.items()}
    lines["vectors, no labelled texts"] = (SIZES[:: len(SIZES) - 1], (alone, alone))
    draw_curves(lines, args.picture, xscale="log", xlabel="labelled texts", ylabel="accuracy", ylim=(0.5, 1))


if __name__ == "__main__":
    main()
