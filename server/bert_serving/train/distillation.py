"""Trains a student to the vectors of a teacher, with the trainer of sentence-transformers.

Everything that a run needs to go on after an interruption is in the folder OUTPUT.training: what was asked for,
the teacher's vectors, the student before training, and checkpoints. It is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import DefaultBatchSampler, SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as TrainingArguments
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ..server.model.demo import find_demo_model
from ..server.model.errors import ModelError
from ..server.worker.device import pick_dtype
from ..server.worker.encoder import Encoder, EncodingError
from .agreement import Vectors
from .comparison import Comparison, compare_on, table, write_json
from .errors import TrainError
from .options import DEMO, CompareJob, DistillJob
from .student import LayeredModel, checked_keep, opened, save, with_width
from .texts import Say, read_texts

_TEXTS_FOR_CHOICE = 300  # held-out texts that choose the layers
_MIN_TEXTS = 200
_SLICE = 8192  # texts whose teacher's vectors are computed and kept together
_WARMUP = 0.1  # of all steps
_STATE = "trainer_state.json"  # the last file of a checkpoint


@dataclass(frozen=True)
class _Data:
    """Texts, and the teacher's vectors of them: float32 (num_texts, width).

    The first `num_held_out` are not trained with.
    """

    texts: list[str]
    vectors: Vectors
    num_held_out: int

    @property
    def held_out(self) -> list[str]:
        return self.texts[: self.num_held_out]


def distill(job: DistillJob, say: Say) -> Comparison:
    """Write the student of a job to its output folder; print and return how it compares with the teacher.

    say: is called with lines for the user. Raises TrainError.
    """
    if job.output.exists() and (not job.output.is_dir() or any(job.output.iterdir())):
        raise TrainError(f"{job.output} exists already: choose another -output, or remove it")
    _check_devices(job)
    _check_student(job)
    work = job.output.parent / f"{job.output.name}.training"
    texts = _shuffled(read_texts(job.texts, say, text_column=job.text_column), job.seed)
    if len(texts) < _MIN_TEXTS:
        raise TrainError(f"{_MIN_TEXTS} different texts are needed, got {len(texts)}")
    _begin(work, job, texts, say)
    data = _Data(texts, _teacher_vectors(job, texts, work, say), min(job.held_out, len(texts) // 10))
    made = work / "student"
    if not made.exists():
        student = _student(job, data, work, say)
        try:
            _train(student, data, job, work, say)
        except torch.OutOfMemoryError as exc:
            raise TrainError(
                "there is not enough memory on the device: give a smaller -batch_size, and a larger -accumulate"
            ) from exc
        _save_as_one(student, made)
    result = compare_on(
        CompareJob(teacher=job.teacher, student=str(made), device=job.device, max_seq_len=job.max_seq_len),
        data.held_out,
    )
    result = replace(result, student=replace(result.student, model=str(job.output)))
    write_json(result, made / "comparison.json")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    if job.output.exists():
        job.output.rmdir()
    made.rename(job.output)
    shutil.rmtree(work)
    say(f"on {len(data.held_out)} texts that it was not trained with:")
    sys.stdout.write(table(result) + "\n")
    return result


def _begin(work: Path, job: DistillJob, texts: list[str], say: Say) -> None:
    """Create the folder of the run, or check that it is of the same run."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    asked = {**job.model_dump(mode="json", exclude={"output", "device"}), "sha256 of the texts": digest}
    path = work / "job.json"
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in asked.items():
            if value != before.get(name):
                was = "other texts" if name.startswith("sha256") else f"{name} {before.get(name)}, not {value}"
                raise TrainError(f"{work} is of a run with {was}: remove it to begin anew")
        say(f"going on with the run in {work}")
        return
    work.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asked))
    partial.rename(path)


def _check_devices(job: DistillJob) -> None:
    if job.device != "cpu" and (count := torch.cuda.device_count()) > 1:
        raise TrainError(f"one GPU is needed, and {count} are visible: choose one with CUDA_VISIBLE_DEVICES=0")


def _check_student(job: DistillJob) -> None:
    """Raise TrainError if there is no such student. It would be a pity to notice it after hours."""
    if job.student is not None:
        opened(_folder(job.student), job.device, job.max_seq_len)
        return
    layered = LayeredModel(opened(_folder(job.teacher), job.device, job.max_seq_len))
    checked_keep(job.keep, layered.num_layers)
    if job.layers is not None and job.layers >= layered.num_layers:
        raise TrainError(f"layers: the teacher has {layered.num_layers}, so give less, got {job.layers}")


def _shuffled(texts: list[str], seed: int) -> list[str]:
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def _teacher_vectors(job: DistillJob, texts: list[str], work: Path, say: Say) -> Vectors:
    """Return the teacher's vectors, float32 (num_texts, width). A run that goes on computes what it lacks."""
    folder = work / "teacher"
    folder.mkdir(exist_ok=True)
    parts = {folder / f"{start}.npy": texts[start : start + _SLICE] for start in range(0, len(texts), _SLICE)}
    missing = {path: some for path, some in parts.items() if not path.exists()}
    if missing:
        say(f"computing the teacher's vectors of {len(texts):,} texts")
        try:
            teacher = Encoder(
                None if job.teacher == DEMO else job.teacher, device=job.device, max_seq_len=job.max_seq_len
            )
        except ModelError as exc:
            raise TrainError(f"{job.teacher}: {exc}") from exc
        for path, some in missing.items():
            try:
                vectors = teacher.encode(some)
            except EncodingError as exc:
                raise TrainError(f"{job.teacher}: {exc}") from exc
            if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
                raise TrainError(f"{job.teacher} gives no single vector for a text")
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, vectors)
            partial.rename(path)
            if len(parts) > 1:
                say(f"teacher's vectors: {int(path.stem) + len(some):,} of {len(texts):,}")
    return np.concatenate([np.load(path) for path in parts])


def _student(job: DistillJob, data: _Data, work: Path, say: Say) -> SentenceTransformer:
    """Return the student as it is before training."""
    start = work / "start"
    if not start.exists():
        if job.student is not None:
            student = opened(_folder(job.student), job.device, job.max_seq_len)
        else:
            layered = LayeredModel(opened(_folder(job.teacher), job.device, job.max_seq_len))
            student = layered.reduced(_layers(job, layered, data, say))
        _save_as_one(with_width(student, data.vectors), start)
    return opened(str(start), job.device, job.max_seq_len)


def _save_as_one(student: SentenceTransformer, folder: Path) -> None:
    """Write a folder that is either whole or not there."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(student, partial)
    partial.rename(folder)


def _layers(job: DistillJob, layered: LayeredModel, data: _Data, say: Say) -> list[int]:
    if job.keep:
        return list(job.keep)
    assert job.layers is not None
    texts = data.held_out[:_TEXTS_FOR_CHOICE]
    return layered.chosen_layers(job.layers, texts, data.vectors[: len(texts)], say)


def _folder(model: str) -> str:
    try:
        return str(find_demo_model()) if model == DEMO else model
    except ModelError as exc:
        raise TrainError(str(exc)) from exc


class VectorLoss(nn.Module):
    """The squared distance to the teacher's vector, divided by its mean squared norm, plus 1 - cosine.

    teacher: float32 (num_texts, width). The labels of the trainer are the numbers of the texts.
    """

    def __init__(self, model: SentenceTransformer, teacher: Vectors) -> None:
        super().__init__()
        self.model = model
        self._teacher = torch.from_numpy(teacher)
        self._scale = float(torch.linalg.vector_norm(self._teacher, dim=1).square().mean())

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        made = self.model(features[0])["sentence_embedding"].float()
        wanted = self._teacher[labels.cpu()].to(made.device)
        distance = (made - wanted).square().sum(1) / self._scale
        loss: Tensor = (distance + 1 - torch.cosine_similarity(made, wanted)).mean()
        return loss


class _LengthBatchSampler(DefaultBatchSampler):
    """Puts texts of similar lengths into a batch, so that little of it is padding.

    The batches come in random order, which depends on seed and epoch alone.
    """

    _BATCHES = 50  # that are sorted together; the less, the more random

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._lengths = [len(text) for text in dataset["sentence"]]

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        together = self._BATCHES * self.batch_size
        for start in range(0, len(order), together):
            order[start : start + together] = sorted(
                order[start : start + together], key=self._lengths.__getitem__
            )
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


class _Reporter(TrainerCallback):  # type: ignore[misc]  # the class has no types
    def __init__(self, say: Say) -> None:
        self._say = say

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        loss = metrics.get("eval_loss", float("nan"))
        self._say(f"step {state.global_step} of at most {state.max_steps}: loss on held-out texts {loss:.4f}")


def _train(student: SentenceTransformer, data: _Data, job: DistillJob, work: Path, say: Say) -> None:
    """Train; afterwards the student has the weights of its best evaluation."""
    checkpoints = work / "checkpoints"
    student.model_card_data.widget = [{}]  # else the trainer looks for examples for a page on the hub
    numbers = list(range(len(data.texts)))
    whole = Dataset.from_dict({"sentence": data.texts, "label": numbers})
    trainer = SentenceTransformerTrainer(
        student,
        _arguments(job, student, checkpoints),
        train_dataset=whole.select(numbers[data.num_held_out :]),
        eval_dataset=whole.select(numbers[: data.num_held_out]),
        loss=VectorLoss(student, data.vectors),
        callbacks=[EarlyStoppingCallback(job.patience), _Reporter(say)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_complete(checkpoints))
    # In training, its forward pass computes in bfloat16.
    trainer.accelerator.unwrap_model(student, keep_fp32_wrapper=False)


def _arguments(job: DistillJob, student: SentenceTransformer, checkpoints: Path) -> TrainingArguments:
    device = student.device
    prompts = student.prompts or {}
    in_bfloat16 = job.precision == "bfloat16" or (job.precision == "auto" and _has_bfloat16(device))
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.batch_size,
        batch_sampler=_LengthBatchSampler,
        prompts=prompts.get(student.default_prompt_name or "") or None,  # which is used for each text afterwards
        gradient_accumulation_steps=job.accumulate,
        learning_rate=job.learning_rate,
        warmup_steps=_WARMUP,
        bf16=in_bfloat16,
        use_cpu=device.type == "cpu",
        eval_strategy="steps",
        eval_steps=job.evaluate_every,
        save_strategy="steps",
        save_steps=job.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # how often in a row there was no improvement
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to="none",
        seed=job.seed,
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=device.type == "cuda",
    )


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return pick_dtype("auto", device) is torch.bfloat16


def _last_complete(checkpoints: Path) -> str | None:
    """Return the newest checkpoint; remove those whose writing was interrupted."""
    complete = []
    for path in checkpoints.glob("checkpoint-*"):
        if (path / _STATE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path)
    newest = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)
