"""What a student with three of the demo model's six layers loses, and what it wins.

    python examples/applications/distill_student.py --output students    # see the page for how long it takes

Trains with sentences of film reviews, without labels. Starts no server. Needs the extras `examples` and `train`.
docs/applications/student.md has the result.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from bert_serving.server import Encoder
from bert_serving.server.model.demo import find_demo_model
from bert_serving.train.comparison import Comparison, compare
from bert_serving.train.distillation import distill
from bert_serving.train.options import CompareJob, DistillJob
from bert_serving.train.student import LayeredModel, opened, save
from classify_reviews import of_vectors, of_words
from corpora import movie_reviews, passages_of, python_manual
from report import draw_bars, parser_of, show

SPACED = ((0, 2, 4), (1, 3, 5))  # every other layer, the usual choices
TEST_REVIEWS = 500  # whose sentences no student sees


def sentences_of(reviews: Iterable[str]) -> list[str]:
    """Return the different sentences of 20 to 400 characters."""
    parts = (" ".join(part.split()) for text in reviews for part in re.split(r"(?<=[.!?])\s+", text))
    return [part for part in dict.fromkeys(parts) if 20 <= len(part) <= 400]


def written(path: Path, texts: Iterable[str]) -> str:
    """Write the texts to a file with a line for each, and return its name."""
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def main() -> None:
    parser = parser_of(__doc__, "student.svg", uses_server=False)
    parser.add_argument("--sentences", type=int, default=60_000, help="that the students are trained with")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--compared", type=int, default=2_000, help="texts of each kind that are compared")
    parser.add_argument("--labelled", type=int, default=8_530, help="sentences, the first sixth of them for tests")
    parser.add_argument("--output", type=Path, default=Path("students"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    reviews, _ = movie_reviews("imdb")
    other = sentences_of(reviews[:TEST_REVIEWS])
    trained_with = sorted(set(sentences_of(reviews[TEST_REVIEWS:])) - set(other))
    trained_with = [trained_with[i] for i in np.random.default_rng(0).permutation(len(trained_with))]
    trained_with = trained_with[: args.sentences]
    texts = written(args.output / "sentences.txt", trained_with)
    tests = {
        "reviews": written(args.output / "other_sentences.txt", other),
        "manual": written(args.output / "manual.txt", (each.text for each in passages_of(python_manual(), 400))),
    }

    layered = LayeredModel(opened(str(find_demo_model()), "cpu", None))
    some = trained_with[:300]
    chosen = tuple(layered.chosen_layers(3, some, Encoder(device="cpu", compile="off").encode(some), print))
    students: dict[str, Path] = {}
    for keep in dict.fromkeys((chosen, *SPACED)):
        name = f"layers {' '.join(map(str, keep))}"
        untrained, trained = (args.output / f"{name.replace(' ', '-')}{end}" for end in ("-untrained", ""))
        students |= {f"{name}, untrained": untrained, f"{name}, trained": trained}
        save(layered.reduced(list(keep)), untrained)
        job = DistillJob(teacher="demo", texts=texts, keep=keep, epochs=args.epochs, output=trained)
        start = time.perf_counter()
        if not trained.exists():  # else an earlier run has trained it
            distill(job, print)
            print(f"trained with {len(trained_with):,} sentences in {time.perf_counter() - start:.0f} s")

    labelled, labels = movie_reviews("rotten_tomatoes")
    labelled, labels = labelled[: args.labelled], labels[: args.labelled]
    n = len(labelled) // 6

    def accuracy(model: str | None) -> float:
        vectors = list(Encoder(model, device="cpu", compile="off").encode(labelled, normalize=True))
        return float(of_vectors().fit(vectors[n:], labels[n:]).score(vectors[:n], labels[:n]))

    found = {}
    for title, folder in students.items():
        results: dict[str, Comparison] = {
            name: compare(
                CompareJob(teacher="demo", student=str(folder), texts=path, max_texts=args.compared), print
            )
            for name, path in tests.items()
        }
        found[title] = {
            "Spearman": results["reviews"].agreement.spearman,
            "neighbours": results["reviews"].agreement.neighbours,
            "neighbours, manual": results["manual"].agreement.neighbours,
            "accuracy": accuracy(str(folder)),
            "times as fast": results["reviews"].agreement.rate,
            "MB": results["reviews"].student.size_mb,
        }
    teacher = {"Spearman": 1.0, "neighbours": 1.0, "neighbours, manual": 1.0, "accuracy": accuracy(None)}
    costs = {"times as fast": 1.0, "MB": results["reviews"].teacher.size_mb}
    show({"teacher": {**teacher, **costs}, **found})
    words = of_words().fit(labelled[n:], labels[n:]).score(labelled[:n], labels[:n])
    print(f"accuracy with words in place of vectors: {words:.3f}, of {n:,} sentences")
    draw_bars({"teacher": teacher, **found}, "neighbours", args.picture)


if __name__ == "__main__":
    main()
