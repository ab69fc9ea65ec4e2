"""Sorts texts into topics and names them: clusters of vectors beside clusters of words.

    make serve                                       # in another terminal
    python examples/applications/name_topics.py      # a minute on two cores

Needs the extra `examples`. docs/applications/topics.md explains the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from corpora import definitions, mails
from report import Vectors, connected, draw_table, parser_of, show
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import normalize

SIZES = (20, 50, 100, 200)  # of the reduced TF-IDF; of these the baseline gets the best one
SEEDS = 5  # k-means starts at random


def labelled(data: str, per_category: int) -> tuple[list[str], list[str]]:
    """Return texts and their categories. data: definitions, mails, or starts: 100 characters of mails.

    Of the definitions, the categories with at least 2,000 are taken; of the mails, all named mailing lists.
    """
    if data == "definitions":
        chosen = {name: texts[:per_category] for name, texts in definitions().items() if len(texts) >= 2_000}
        pairs = [(text, name) for name, texts in chosen.items() for text in texts]
    else:
        of_lists = [mail for mail in mails() if mail.group not in ("", "spam")]
        pairs = [(mail.text[: 100 if data == "starts" else None], mail.group) for mail in of_lists]
    return [text for text, _ in pairs], [name for _, name in pairs]


def reduced_words(texts: Sequence[str], size: int) -> Vectors:
    """Return the baseline's vectors: TF-IDF without stop words, reduced (SVD), of length 1."""
    weights = TfidfVectorizer(stop_words="english", sublinear_tf=True, min_df=3, max_df=0.3).fit_transform(texts)
    reduced: Vectors = normalize(TruncatedSVD(size, random_state=0).fit_transform(weights))
    return reduced


def by_kmeans(vectors: Vectors, categories: Sequence[str]) -> tuple[dict[str, float], Vectors]:
    """Return the mean quality over some starts, and the clusters of the first. As many as categories."""
    number = len(set(categories))
    found = [KMeans(number, n_init=3, random_state=seed).fit_predict(vectors) for seed in range(SEEDS)]
    measured = [quality(clusters, categories) for clusters in found]
    return {name: float(np.mean([each[name] for each in measured])) for name in measured[0]}, found[0]


def quality(clusters: Vectors, categories: Sequence[str]) -> dict[str, float]:
    """Return how well clusters agree with categories, and the part of the texts in no cluster (-1)."""
    return {
        "adjusted Rand": adjusted_rand_score(categories, clusters),
        "NMI": normalized_mutual_info_score(categories, clusters),
        "in no cluster": float(np.mean(clusters == -1)),
    }


def names(texts: Sequence[str], clusters: Vectors, num_words: int = 4) -> dict[int, str]:
    """Return a name for each cluster: the words with the largest c-TF-IDF.

    All texts of a cluster count as one. The weight of a word is its part of the cluster's words, times
    log(1 + mean number of words of a cluster / count of the word in all clusters).
    """
    counter = CountVectorizer(stop_words="english", token_pattern=r"[A-Za-z]{3,}", min_df=3)
    counts = counter.fit_transform(texts)
    words = counter.get_feature_names_out()
    numbers = sorted(set(clusters.tolist()) - {-1})
    of_cluster = np.stack([np.asarray(counts[clusters == number].sum(0))[0] for number in numbers])
    parts = of_cluster / of_cluster.sum(1, keepdims=True)
    scores = parts * np.log(1 + of_cluster.sum(1).mean() / of_cluster.sum(0))
    return {
        n: ", ".join(words[i] for i in np.argsort(-row)[:num_words])
        for n, row in zip(numbers, scores, strict=True)
    }


def draw(texts: Sequence[str], categories: Sequence[str], clusters: Vectors, picture: Path) -> None:
    """Draw and print which part of each cluster is of which category."""
    named, columns = names(texts, clusters), sorted(set(categories))
    pairs = Counter(zip(clusters.tolist(), categories, strict=True))
    cells = np.array([[pairs[number, name] for name in columns] for number in named], float)
    order = np.argsort(cells.argmax(1), kind="stable")
    cells = (cells / cells.sum(1, keepdims=True))[order]
    rows = [list(named.values())[i] for i in order]
    for row, parts in zip(rows, cells, strict=True):
        print(f"    {row}: {parts.max():.0%} {columns[parts.argmax()]}")
    draw_table(cells, rows, columns, picture, "part of each cluster by category")


def main() -> None:
    parser = parser_of(__doc__, "topics.svg")
    parser.add_argument(
        "--data", nargs="+", default=["definitions", "mails", "starts"], help="the first one is drawn"
    )
    parser.add_argument("--per_category", type=int, default=1_000, help="definitions")
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for data in args.data:
        texts, categories = labelled(data, args.per_category)
        print(f"{data}: {len(texts):,} texts in {len(set(categories))} categories")
        with connected(args) as client:
            vectors = client.encode(texts, normalize=True)
        results[f"{data}: vectors"], clusters = by_kmeans(vectors, categories)
        if data == args.data[0]:
            draw(texts, categories, clusters, args.picture)
        reduced = [reduced_words(texts, size) for size in SIZES]
        measured = [by_kmeans(each, categories)[0] for each in reduced]
        results[f"{data}: words"] = max(measured, key=lambda each: each["adjusted Rand"])
        for name, points in (("vectors", PCA(20, random_state=0).fit_transform(vectors)), ("words", reduced[0])):
            dense = HDBSCAN(min_cluster_size=20, min_samples=5, copy=True).fit_predict(points)
            print(f"    HDBSCAN of {name} found {dense.max() + 1} clusters")
            results[f"{data}: {name}, HDBSCAN"] = quality(dense, categories)
    show(results)


if __name__ == "__main__":
    main()
