"""bert-serving-distill and bert-serving-compare, on the demo model and on tiny random ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bert_serving.server import Encoder
from bert_serving.server.model.demo import find_demo_model
from bert_serving.train import cli, distillation
from bert_serving.train.agreement import mean_cosine, pairwise_cosines, rank_correlation
from bert_serving.train.distillation import _arguments, _begin, _LengthBatchSampler, distill
from bert_serving.train.errors import TrainError
from bert_serving.train.options import DistillJob, parse_distill
from bert_serving.train.student import LayeredModel, opened, save, with_width
from bert_serving.train.texts import read_texts
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModel

from tests.support.code_blocks import blocks_run_by
from tests.support.sentences import sentences
from tests.support.tiny_models import FAMILIES, make_model
from tests.support.waiting import HANG_S, wait_until

#: What docs/applications/student.md shows.
(SHOWN,) = blocks_run_by(__file__)
DISTILL, COMPARE, START = (words[1:] for words in SHOWN.commands if words[0] != "pip")
COMMAND = [sys.executable, "-c", "import sys; from bert_serving.train.cli import distill; sys.exit(distill())"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("teacher"), "bert"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(" ".join(each.split()[:20]) for each in sentences(600)) + "\n")
    return str(path)


def test_a_trained_student_agrees_more_than_its_layers_did_before(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(texts, "sentences.txt")
    short = ["-epochs", "1", "-evaluate_every", "5", "-batch_size", "16"]
    said: list[str] = []
    result = distill(parse_distill([*DISTILL, *short]), said.append)
    found = result.agreement
    layered = LayeredModel(opened(str(find_demo_model()), "cpu", None))
    some = read_texts([texts], print, limit=100)
    wanted = layered.model.encode(some)
    (*_, chosen) = [line.partition(":")[0] for line in said if line.startswith("with the layers")]
    untrained = layered.reduced([int(layer) for layer in re.findall(r"\d+", chosen)]).encode(some)
    assert found.spearman > rank_correlation(pairwise_cosines(untrained), pairwise_cosines(wanted)) + 0.05
    assert found.cosine is not None
    assert found.cosine > mean_cosine(untrained, wanted) + 0.1
    assert result.student.size_mb < 0.8 * result.teacher.size_mb
    folder = START[START.index("-model_dir") + 1]
    written = json.loads((tmp_path / folder / "comparison.json").read_text())
    assert written["agreement"]["spearman"] == found.spearman
    assert written["student"]["model"] == folder
    assert not (tmp_path / "student.training").exists()
    for_both = ["some words", "other words and more of them"]
    ours = Encoder(folder, dtype="float32", compile="off").encode(for_both)
    assert np.allclose(ours, SentenceTransformer(folder, device="cpu").encode(for_both), atol=1e-5)


def test_the_comparison_chooses_layers_that_agree_most(texts: str) -> None:
    layered = LayeredModel(opened(str(find_demo_model()), "cpu", None))
    some = read_texts([texts], print)[:100]
    wanted = layered.model.encode(some)
    said: list[str] = []
    keep = layered.chosen_layers(4, some, wanted, said.append)
    assert len(keep) == 4
    assert len(said) == 2

    def score(layers: list[int]) -> float:
        vectors = layered.reduced(layers).encode(some)
        return rank_correlation(pairwise_cosines(vectors), pairwise_cosines(wanted))

    assert f"{score(keep):.3f}" in said[-1]
    assert score(keep) > score([0, 1, 2, 3])
    assert np.array_equal(layered.model.encode(some), wanted), "the teacher is whole again"


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"albert", "nomic_bert"}))
def test_layers_of_every_family_can_be_kept(family: str, tmp_path: Path) -> None:
    layered = LayeredModel(opened(str(make_model(tmp_path / "teacher", family)), "cpu", None))
    save(layered.reduced([0, 2]), tmp_path / "student")
    (part,) = (each for each in AutoModel.from_pretrained(tmp_path / "student").modules() if is_list_of(each, 2))
    assert len(part) == 2
    vectors = [
        SentenceTransformer(str(tmp_path / name), device="cpu").encode("word") for name in ("teacher", "student")
    ]
    assert not np.allclose(*vectors, atol=1e-3)


def is_list_of(part: nn.Module, count: int) -> bool:
    return isinstance(part, nn.ModuleList) and len(part) == count


def test_layers_that_are_one_are_refused(texts: str, tmp_path: Path) -> None:
    teacher = make_model(tmp_path / "teacher", "albert")
    job = parse_distill([str(teacher), "-texts", texts, "-layers", "2", "-o", str(tmp_path / "student")])
    with pytest.raises(TrainError, match="no list of 3 layers in a albert model: give a smaller -student"):
        distill(job, lambda line: None)


def test_a_smaller_student_gets_the_width_and_the_norm_of_the_teacher(tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", "bert", hidden_size=32, num_hidden_layers=1)
    teacher = Encoder(compile="off").encode(["a", "b"])
    save(with_width(opened(str(small), "cpu", None), teacher), tmp_path / "student")
    vectors = Encoder(tmp_path / "student", dtype="float32", compile="off").encode(["a", "b"])
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert np.allclose(
        vectors, SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(["a", "b"]), atol=1e-5
    )


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(tiny: str, texts: str, tmp_path: Path) -> None:
    words = [
        tiny,
        "-texts",
        texts,
        "-layers",
        "2",
        "-epochs",
        "2",
        "-evaluate_every",
        "10",
        "-batch_size",
        "32",
        "-precision",
        "float32",
    ]
    whole = distill(parse_distill([*words, "-o", str(tmp_path / "whole")]), lambda line: None)
    command = [*COMMAND, *words, "-o", str(tmp_path / "killed")]
    checkpoints = tmp_path / "killed.training/checkpoints"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        wait_until((checkpoints / "checkpoint-20/trainer_state.json").exists)  # in the second epoch
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed").exists()
    (checkpoints / "checkpoint-99").mkdir()  # as one whose writing was interrupted
    again = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on with the run" in again.stderr
    assert "step 20 of" not in again.stderr
    assert "step 30 of" in again.stderr
    probe = sentences(20, seed=1)
    vectors = [
        Encoder(tmp_path / name, dtype="float32", compile="off").encode(probe) for name in ("whole", "killed")
    ]
    assert np.allclose(*vectors, atol=1e-4)
    assert whole.student.dimension == 64


def test_a_smaller_student_is_trained_until_it_learns_no_more(tiny: str, texts: str, tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", "bert", hidden_size=32, num_hidden_layers=1)
    words = [
        tiny,
        "-texts",
        texts,
        "-student",
        str(small),
        "-accumulate",
        "2",
        "-batch_size",
        "16",
        "-patience",
        "2",
    ]
    said: list[str] = []
    options = ["-evaluate_every", "2", "-learning_rate", "1e-12", "-epochs", "9", "-o", str(tmp_path / "student")]
    result = distill(parse_distill([*words, *options]), said.append)
    steps = [int(line.split()[1]) for line in said if line.startswith("step ")]
    assert len(steps) <= 4  # of 9 * 17
    assert result.student.dimension == result.teacher.dimension == 64
    dense = (tmp_path / "student").glob("*_Dense/model.safetensors")
    assert result.student.size_mb * 1e6 == sum(
        path.stat().st_size for path in [tmp_path / "student/model.safetensors", *dense]
    )


def test_a_teacher_s_default_prompt_is_used_in_training(tiny: str, tmp_path: Path) -> None:
    teacher = SentenceTransformer(tiny, device="cpu", prompts={"query": "query: "}, default_prompt_name="query")
    job = DistillJob(teacher="demo", texts=("x",), keep=(0,), output=tmp_path)
    assert _arguments(job, teacher, tmp_path).prompts == "query: "
    assert _arguments(job, opened(tiny, "cpu", None), tmp_path).prompts is None


def test_a_run_that_goes_on_computes_only_the_teacher_s_vectors_that_it_lacks(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "_SLICE", 30)
    some = sentences(100)
    job = DistillJob(teacher=tiny, texts=("x",), keep=(0,), output=tmp_path)
    expected = Encoder(tiny).encode(some)
    assert np.array_equal(distillation._teacher_vectors(job, some, tmp_path, lambda line: None), expected)
    (tmp_path / "teacher/30.npy").unlink()
    np.save(tmp_path / "teacher/0.npy", np.zeros_like(expected[:30]))  # so it shows if they are computed again
    said: list[str] = []
    again = distillation._teacher_vectors(job, some, tmp_path, said.append)
    assert np.array_equal(again[30:], expected[30:])
    assert not again[:30].any()
    assert said[1:] == ["teacher's vectors: 60 of 100"]


def test_several_gpus_are_refused(tiny: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    job = DistillJob(teacher=tiny, texts=(texts,), keep=(0,), output=tmp_path / "student")
    with pytest.raises(TrainError, match="4 are visible: choose one with CUDA_VISIBLE_DEVICES=0"):
        distill(job, lambda line: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-layers", "3"], "layers: the teacher has 3, so give less, got 3"),
        (["-keep", "0 7"], "keep: the teacher has the layers 0 to 2, got 7"),
        (["-student", "/nonexistent"], "/nonexistent"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: list[str], message: str, tiny: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.distill([tiny, "-texts", texts, "-o", str(tmp_path / "student"), *words]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bert-serving-distill: ")
    assert message in last


def test_an_output_is_not_overwritten_and_another_run_is_not_continued(
    tiny: str, texts: str, tmp_path: Path
) -> None:
    job = DistillJob(teacher=tiny, texts=(texts,), keep=(0, 2), output=tmp_path / "student")
    _begin(tmp_path / "work", job, ["a"], lambda line: None)
    with pytest.raises(TrainError, match=r"is of a run with epochs 3.0, not 9.0: remove it"):
        _begin(tmp_path / "work", job.model_copy(update={"epochs": 9.0}), ["a"], lambda line: None)
    with pytest.raises(TrainError, match="is of a run with other texts"):
        _begin(tmp_path / "work", job, ["b"], lambda line: None)
    (tmp_path / "student").mkdir()
    (tmp_path / "student/file").touch()
    with pytest.raises(TrainError, match="exists already"):
        distill(job, lambda line: None)


def test_a_comparison_of_a_model_with_itself(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text_a,text_b,score\nthe fox,the fox,5\nthe fox,the lazy dog,2\nhello,one two three,0\n")
    files = ["-pairs", str(pairs), "-json_file", str(tmp_path / "out.json"), "-plot", str(tmp_path / "out.svg")]
    assert cli.compare([tiny, tiny, "-max_texts", "300", "-dtype", "float32", *files]) == 0
    captured = capsys.readouterr()
    assert "no texts were given: 300 sentences of Python's manual are used" in captured.err
    found = json.loads((tmp_path / "out.json").read_text())
    agreement = found["agreement"]
    for name in ("spearman", "neighbours", "cka", "rotated_cosine", "cosine"):
        assert agreement[name] == pytest.approx(1, abs=1e-3), name
    assert found["teacher"]["labels"] == found["student"]["labels"]
    assert found["teacher"]["memory_mb"] > found["teacher"]["size_mb"] > 0
    assert "</svg>" in (tmp_path / "out.svg").read_text()
    assert "Spearman with the labels" in captured.out


def test_other_models_agree_less(tiny: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(texts, "other.txt")
    make_model(tmp_path / "student", "bert", seed=1, hidden_size=32)
    shown = [tiny if word == "demo" else word for word in COMPARE]
    assert cli.compare([*shown, "-max_texts", "300", "-json_file", "out.json"]) == 0
    agreement = json.loads((tmp_path / "out.json").read_text())["agreement"]
    assert agreement["cosine"] is None
    assert agreement["neighbours"] < 0.9
    assert agreement["spearman"] < 0.95
    assert "</svg>" in (tmp_path / "student.svg").read_text()


@pytest.mark.parametrize("words", [["/nonexistent", "demo"], ["demo", "demo", "-texts", "/nonexistent.txt"]])
def test_a_comparison_that_cannot_be_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.compare(words) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("bert-serving-compare: ")
    assert "/nonexistent" in line


def test_a_model_that_cannot_be_loaded_is_one_line(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process of the other model is still loading then, and says nothing."""
    shutil.copytree(tiny, tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").write_bytes(b"damaged")
    assert cli.compare([str(tmp_path / "damaged"), tiny, "-max_texts", "100"]) == 1
    texts, error = capfd.readouterr().err.splitlines()
    assert "100 sentences" in texts
    assert f"{tmp_path / 'damaged'}: cannot load the model" in error


def test_a_batch_has_texts_of_similar_lengths_and_each_text_comes_once_in_an_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 2_000)
    sampler = _LengthBatchSampler(
        Dataset.from_dict({"sentence": ["x" * n for n in lengths]}), batch_size=16, drop_last=False
    )
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(2_000))
    assert sum(len(batch) * lengths[batch].max() for batch in batches) < 1.1 * lengths.sum()
    longest = [lengths[batch].max() for batch in batches]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3  # not from short to long
    assert list(sampler) == batches  # a run that goes on sees the rest of the same epoch
    sampler.set_epoch(1)
    assert list(sampler) != batches
