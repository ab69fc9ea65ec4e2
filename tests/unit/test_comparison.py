"""What bert-serving-compare computes from the answers of two models, which are made up here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bert_serving.train import comparison
from bert_serving.train.errors import TrainError
from bert_serving.train.measured_model import ModelFacts
from bert_serving.train.options import CompareJob
from bert_serving.train.texts import read_pairs

SECONDS = {"teacher": 2.0, "student": 0.5}  # of each call


class MadeUpModel:
    """A text is an angle; its vector points there."""

    def __init__(self, name: str, spec: object) -> None:
        self.name = name
        self.facts = ModelFacts(dimension=2, size_mb=1, dtype="float32", forward_kind="padded")

    def __enter__(self) -> MadeUpModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> tuple[Any, float]:
        angles = np.array([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1), SECONDS[self.name]

    def memory_mb(self) -> float:
        return 5


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> CompareJob:
    monkeypatch.setattr(comparison, "MeasuredModel", MadeUpModel)
    monkeypatch.setattr(comparison, "checked_spec", lambda job, name: None)
    return CompareJob(teacher="teacher", student="student")


TEXTS = [str(i / 10) for i in range(30)]


def test_the_rate_is_the_student_s_in_terms_of_the_teacher_s(job: CompareJob) -> None:
    found = comparison.compare_on(job, TEXTS)
    assert found.agreement.rate == 4
    assert (found.teacher.texts_per_s, found.student.texts_per_s) == (128, 512)
    assert (found.teacher.one_text_ms, found.student.one_text_ms) == (2000, 500)


def test_closer_pairs_have_higher_scores(job: CompareJob) -> None:
    first, second = ["0"] * 4, ["0.1", "0.5", "1", "2"]
    scores = [4.0, 3.0, 2.0, 1.0]
    assert comparison.compare_on(job, TEXTS, (first, second, scores)).teacher.labels == pytest.approx(1)
    assert comparison.compare_on(job, TEXTS, (first, second, scores[::-1])).student.labels == pytest.approx(-1)


def test_what_is_no_number_is_null_in_json(job: CompareJob, tmp_path: Path) -> None:
    found = comparison.compare_on(job, TEXTS, (["0", "0"], ["1", "2"], [3.0, 3.0]))
    comparison.write_json(found, tmp_path / "out.json")
    assert '"labels": null' in (tmp_path / "out.json").read_text()
    assert "NaN" not in (tmp_path / "out.json").read_text()


def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for wrong, message in (
        ({"plot": tmp_path / "x.xyz"}, "svg"),
        ({"json_file": tmp_path / "a/b.json"}, "no folder"),
    ):
        job = CompareJob.model_validate({"teacher": "/none", "student": "/none", **wrong})
        with pytest.raises(TrainError, match=message):
            comparison.compare(job, lambda line: None)


def test_a_score_is_a_finite_number(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("text_a,text_b,score\na,b,1\na,c,nan\n")
    with pytest.raises(TrainError, match="finite numbers, got nan"):
        read_pairs(str(path), print)
