"""The command lines of bert-serving-compare and bert-serving-distill."""

from __future__ import annotations

from pathlib import Path

import pytest
from bert_serving.train.errors import TrainError
from bert_serving.train.options import parse_compare, parse_distill
from bert_serving.train.texts import read_pairs, read_texts


def test_a_comparison() -> None:
    job = parse_compare(["demo", "other", "-texts", "a.txt", "b.csv", "-max_texts", "50", "-compile", "wait"])
    assert (job.teacher, job.student, job.texts, job.max_texts) == ("demo", "other", ("a.txt", "b.csv"), 50)
    assert job.spec("demo").model_dir is None
    assert (job.spec("other").model_dir, job.spec("other").compile) == ("other", "wait")


def test_a_distillation() -> None:
    job = parse_distill(["demo", "-texts", "a.txt", "-keep", "0,2", "5", "-o", "out"])
    assert (job.keep, job.texts, job.output) == ((0, 2, 5), ("a.txt",), Path("out"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give one of layers, keep and student, got none"),
        (["-layers", "2", "-student", "x"], "give one of layers, keep and student, got layers and student"),
        (["-keep", "2 1"], "keep must be layers from 0 in ascending order, got (2, 1)"),
        (["-layers", "0"], "layers: input should be greater than or equal to 1, got '0'"),
        (["-layers", "2", "-texts"], "expected at least one argument"),
    ],
)
def test_a_wrong_value_is_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_distill(["demo", "-o", "out", "-texts", "a.txt", *given])
    printed = capsys.readouterr().err
    assert printed.startswith("bert-serving-distill: error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_texts_are_different_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\n  \none\nthree\n")
    said: list[str] = []
    assert read_texts([str(path)], said.append) == ["one", "two", "three"]
    assert len(read_texts([str(path)], said.append, limit=2)) == 2
    assert said == []


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n{"text": 5}\n{"te\n{"text": "two"}\n')
    said: list[str] = []
    assert read_texts([str(path)], said.append) == ["one", "two"]
    (line,) = said
    assert line.startswith("rows that cannot be read are left out: 2; the first: ")


def test_texts_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("id,body\n1,one\n2,two\n")
    assert read_texts([str(path)], print, text_column="body") == ["one", "two"]
    with pytest.raises(TrainError, match="there is no column 'other'; the columns are id, body"):
        read_texts([str(path)], print, text_column="other")


def test_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("text_a\ttext_b\tscore\none\tother\t0.5\ntwo\tthird\t4\n")
    assert read_pairs(str(path), print) == (["one", "two"], ["other", "third"], [0.5, 4.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text_a\tb\n1\t2\n", "there is no column 'text_b'; the columns are text_a, b"),
        (
            "text_a\ttext_b\tscore\n1\t2\tmuch\n",
            "column score must hold numbers: could not convert string to float: 'much'",
        ),
        ("text_a\ttext_b\tscore\n", "holds no pairs"),
    ],
)
def test_wrong_pairs(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(content)
    with pytest.raises(TrainError, match=message):
        read_pairs(str(path), print)
