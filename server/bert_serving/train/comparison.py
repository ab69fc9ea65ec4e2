"""Compares two models: how far they agree, and what each costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from .agreement import (
    Vectors,
    linear_cka,
    mean_cosine,
    neighbours_overlap,
    pairwise_cosines,
    rank_correlation,
    rotated_cosine,
    unit,
)
from .errors import TrainError
from .measured_model import MeasuredModel
from .options import CompareJob, checked_spec
from .texts import Say, read_pairs, read_texts, texts_of_python

_MIN_TEXTS = 20
_ROUNDS = 7  # in which both models take turns, so that what else the machine does meets both
_TEXTS_PER_ROUND = 256
_SINGLE_TEXTS = 60
_PLOTTED_PAIRS = 20_000


@dataclass(frozen=True)
class Costs:
    """What a model costs. Rate and time are medians.

    size_mb: of the weights on disk. memory_mb: of a process that has the model, with torch. Both in 10^6 bytes.
    labels: Spearman's correlation of the cosines with the scores of the labelled pairs.
    """

    model: str
    dimension: int
    dtype: str
    forward_kind: str
    size_mb: float
    memory_mb: float
    texts_per_s: float
    one_text_ms: float
    labels: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How far two models agree, in all: 1. See agreement.py for each measure.

    rate: the student's rate divided by the teacher's, the median over rounds. cosine: None if the widths differ.
    rotated_cosine: None if there are too few texts for it.
    """

    num_texts: int
    spearman: float
    neighbours: float
    cka: float
    rotated_cosine: float | None
    cosine: float | None
    rate: float


@dataclass(frozen=True)
class Comparison:
    """The result. cosines: of some pairs of texts, in both models; for the picture."""

    teacher: Costs
    student: Costs
    agreement: Agreement
    cosines: tuple[Vectors, Vectors]

    def to_json(self) -> dict[str, Any]:
        """Return what goes into the file: all but the cosines. What is no number becomes None."""
        found = {name: asdict(getattr(self, name)) for name in ("teacher", "student", "agreement")}
        return {
            name: {key: None if value != value else value for key, value in part.items()}  # noqa: PLR0124 - nan
            for name, part in found.items()
        }


def compare(job: CompareJob, say: Say) -> Comparison:
    """Compare the models of a job. say: is called with lines for the user. Raises TrainError."""
    _check_files(job)
    if job.texts:
        texts = read_texts(job.texts, say, text_column=job.text_column, limit=job.max_texts)
    else:
        texts = texts_of_python(job.max_texts)
        say(f"no texts were given: {len(texts)} sentences of Python's manual are used")
    pairs = None if job.pairs is None else read_pairs(job.pairs, say)
    return compare_on(job, texts, pairs)


def compare_on(
    job: CompareJob, texts: Sequence[str], pairs: tuple[list[str], list[str], list[float]] | None = None
) -> Comparison:
    """Compare the models of a job on these texts; pairs: first texts, second texts, scores. Raises TrainError."""
    if len(texts) < _MIN_TEXTS:
        raise TrainError(f"{_MIN_TEXTS} different texts are needed, got {len(texts)}")
    specs = [checked_spec(job, name) for name in (job.teacher, job.student)]
    with MeasuredModel(job.teacher, specs[0]) as teacher, MeasuredModel(job.student, specs[1]) as student:
        models = [teacher, student]
        facts = [model.facts for model in models]  # a model that cannot be loaded is reported before the work
        vectors = teacher.encode(texts)[0], student.encode(texts)[0]
        rates, times = _measured_in_turns(models, texts)
        labels = [None if pairs is None else _with_labels(model, *pairs) for model in models]
        costs = [
            Costs(
                model=model.name,
                memory_mb=model.memory_mb(),
                texts_per_s=float(np.median(rate)),
                one_text_ms=float(np.median(time)) * 1000,
                labels=label,
                **asdict(fact),
            )
            for model, fact, rate, time, label in zip(models, facts, rates, times, labels, strict=True)
        ]
    cosines = [pairwise_cosines(each) for each in vectors]
    agreement = Agreement(
        num_texts=len(texts),
        spearman=rank_correlation(*cosines),
        neighbours=neighbours_overlap(*vectors),
        cka=linear_cka(*vectors),
        rotated_cosine=rotated_cosine(*vectors),
        cosine=mean_cosine(*vectors) if vectors[0].shape == vectors[1].shape else None,
        rate=float(np.median(np.divide(rates[1], rates[0]))),
    )
    some = np.random.default_rng(0).choice(len(cosines[0]), min(_PLOTTED_PAIRS, len(cosines[0])), replace=False)
    return Comparison(costs[0], costs[1], agreement, (cosines[0][some], cosines[1][some]))


def _check_files(job: CompareJob) -> None:
    """Raise TrainError if the results could not be written."""
    for path in (job.json_file, job.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise TrainError(f"{path}: there is no folder {path.absolute().parent}")
    if job.plot is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        endings = FigureCanvasBase.get_supported_filetypes()
        if job.plot.suffix.removeprefix(".") not in endings:
            raise TrainError(f"plot: expected a file that ends with one of {', '.join(endings)}, got {job.plot}")


def _measured_in_turns(
    models: Sequence[MeasuredModel], texts: Sequence[str]
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the texts per second of each model in each round, and its seconds for each of some single texts."""
    rates: list[list[float]] = [[] for _ in models]
    times: list[list[float]] = [[] for _ in models]
    endless = cycle(texts)
    for _ in range(_ROUNDS):
        some = list(islice(endless, _TEXTS_PER_ROUND))
        for model, rate in zip(models, rates, strict=True):
            rate.append(len(some) / model.encode(some)[1])
    for text in islice(endless, _SINGLE_TEXTS):
        for model, time in zip(models, times, strict=True):
            time.append(model.encode([text])[1])
    return rates, times


def _with_labels(model: MeasuredModel, first: list[str], second: list[str], scores: list[float]) -> float:
    both = [unit(model.encode(texts)[0]) for texts in (first, second)]
    return rank_correlation(np.sum(both[0] * both[1], axis=1), np.array(scores))


def table(result: Comparison) -> str:
    """Return the result as lines for a terminal."""
    teacher, student = result.teacher, result.student
    rows: list[tuple[str, str, str]] = [
        ("components of a vector", f"{teacher.dimension}", f"{student.dimension}"),
        ("weights, MB", f"{teacher.size_mb:.0f}", f"{student.size_mb:.0f}"),
        ("memory of a process, MB", f"{teacher.memory_mb:.0f}", f"{student.memory_mb:.0f}"),
        ("texts/s", f"{teacher.texts_per_s:.0f}", f"{student.texts_per_s:.0f}"),
        ("one text, ms", f"{teacher.one_text_ms:.1f}", f"{student.one_text_ms:.1f}"),
        ("forward pass", f"{teacher.dtype}, {teacher.forward_kind}", f"{student.dtype}, {student.forward_kind}"),
    ]
    if teacher.labels is not None and student.labels is not None:
        rows.append(("Spearman with the labels", f"{teacher.labels:.3f}", f"{student.labels:.3f}"))
    lines = [f"{'':28}{'teacher':>22}{'student':>22}"]
    lines += [f"{name:28}{left:>22}{right:>22}" for name, left, right in rows]
    found = result.agreement
    measures: Mapping[str, float | None] = {
        "Spearman of the cosines": found.spearman,
        "10 nearest neighbours": found.neighbours,
        "linear CKA": found.cka,
        "cosine after a rotation": found.rotated_cosine,
        "cosine": found.cosine,
    }
    lines += ["", f"agreement on {found.num_texts} texts (1: complete)"]
    lines += [f"    {name:24}{value:>22.3f}" for name, value in measures.items() if value is not None]
    lines += [f"the student is {found.rate:.2f} times as fast"]
    return "\n".join(lines)


def write_json(result: Comparison, path: Path) -> None:
    """Write the result. Raises OSError."""
    path.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")


def draw(result: Comparison, path: Path) -> None:
    """Draw the cosines of pairs of texts in both models. Raises OSError or ValueError (unknown ending)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4.4), layout="constrained")
    drawn = axes.hexbin(*result.cosines, gridsize=60, bins="log", mincnt=1, linewidths=0.1)
    figure.colorbar(drawn, label="pairs of texts")
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    axes.set(xlabel="cosine, teacher", ylabel="cosine, student")
    axes.set_title(f"Spearman's correlation {result.agreement.spearman:.3f}")
    figure.savefig(path)
    plt.close(figure)
