"""The options of bert-serving-compare and bert-serving-distill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..server.model.errors import ModelError
from ..server.model.spec import Dtype, ModelOptions, ModelSpec, split_list, validation_line
from ..server.settings import OneLineParser, add_flags
from .errors import TrainError

DEMO = "demo"  # the name of the demo model on these command lines

_MaxSeqLen = ModelOptions.model_fields["max_seq_len"].annotation
_TEXTS = "files, folders or patterns with texts, in any format that bert-serving-encode reads"
_TEXT_COLUMN = "column with the texts; default: text, or the only column of strings"
_DEVICE = "device of the models: auto, cpu or cuda:N"


class _Job(BaseModel):
    """What both commands share. Frozen; raises pydantic.ValidationError for bad values."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    texts: tuple[str, ...] = Field((), description=_TEXTS)
    text_column: str | None = Field(None, description=_TEXT_COLUMN)
    device: str = Field("auto", description=_DEVICE)
    max_seq_len: int | None = Field(
        None, ge=3, description="longest sequence in tokens; default: the limit that each model is configured with"
    )

    @field_validator("texts", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class CompareJob(_Job):
    """Which models are compared, and how."""

    teacher: str = Field(
        description=f"folder of a model, its name on the Hugging Face hub, or {DEMO}: the demo model"
    )
    student: str = Field(description="the other model, named in the same way")
    max_texts: int = Field(
        2000,
        ge=20,
        le=5000,
        description="texts that are compared, chosen at random; a square of cosines is held",
    )
    pairs: str | None = Field(
        None, description="file with the columns text_a, text_b and score: how alike both texts are, as a number"
    )
    dtype: Dtype = Field("auto", description="number format of both forward passes, as of bert-serving-start")
    compile: Literal["off", "wait"] = Field(
        "off", description="wait: compile both forward passes first, as a server does in the background"
    )
    json_file: Path | None = Field(None, description="file for the result as JSON")
    plot: Path | None = Field(None, description="file for a picture of it, such as .svg or .png")

    def spec(self, model: str) -> ModelSpec:
        """Return how to load a model. Raises ModelError."""
        return ModelSpec.checked(
            model_dir=None if model == DEMO else model,
            device=self.device,
            dtype=self.dtype,
            compile=self.compile,
            max_seq_len=self.max_seq_len,
        )


class DistillJob(_Job):
    """Which student learns what from which teacher."""

    teacher: str = Field(
        description=f"folder of a model, its name on the Hugging Face hub, or {DEMO}: the demo model"
    )
    output: Path = Field(description="folder for the student, in sentence-transformers' format")
    layers: int | None = Field(
        None, ge=1, description="number of the teacher's layers that the student keeps; a comparison chooses them"
    )
    keep: tuple[int, ...] = Field((), description="the layers that it keeps, from 0, instead of a number of them")
    student: str | None = Field(
        None, description="folder or name of a smaller model that learns, instead of layers of the teacher"
    )
    epochs: float = Field(3, gt=0, description="passes over the texts at most")
    batch_size: int = Field(64, ge=1, description="texts in a step of one device")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added up before the weights change")
    learning_rate: float = Field(3e-4, gt=0, description="largest learning rate")
    held_out: int = Field(
        1000, ge=20, le=5000, description="texts that are not trained on, to measure with; at most a tenth of them"
    )
    evaluate_every: int = Field(
        200, ge=1, description="steps from one evaluation, and checkpoint, to the next one"
    )
    patience: int = Field(
        5, ge=1, description="end early when so many evaluations in a row have brought no improvement"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the products in training; auto: bfloat16 where the hardware has it"
    )
    seed: int = Field(0, description="of the order of the texts")

    @field_validator("keep", mode="before")
    @classmethod
    def _layers_are_split(cls, value: object) -> object:
        return split_list(" ".join(map(str, value)) if isinstance(value, list | tuple) else value)

    @model_validator(mode="after")
    def _one_student(self) -> DistillJob:
        given = [name for name in ("layers", "keep", "student") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of layers, keep and student, got {' and '.join(given) or 'none'}")
        if not self.texts:
            raise ValueError("texts is needed: what the student is trained with")
        if list(self.keep) != sorted(set(self.keep)) or min(self.keep, default=0) < 0:
            raise ValueError(f"keep must be layers from 0 in ascending order, got {self.keep}")
        return self


_AnyJob = TypeVar("_AnyJob", CompareJob, DistillJob)


def parse_compare(argv: Sequence[str] | None = None) -> CompareJob:
    """Return the job of a command line. Prints one line and exits with 2 if a value is invalid."""
    return _parsed(
        CompareJob, "bert-serving-compare", "Measure what a student has lost and won.", argv, ["student"]
    )


def parse_distill(argv: Sequence[str] | None = None) -> DistillJob:
    """Return the job of a command line. Prints one line and exits with 2 if a value is invalid."""
    return _parsed(DistillJob, "bert-serving-distill", "Train a small model to a large one's vectors.", argv, [])


def _parsed(
    kind: type[_AnyJob], prog: str, description: str, argv: Sequence[str] | None, positional: Sequence[str]
) -> _AnyJob:
    parser = OneLineParser(prog=prog, description=description)
    fields = dict(kind.model_fields)
    for name in ("teacher", *positional):
        parser.add_argument(name, metavar=name.upper(), help=fields.pop(name).description)
    if kind is DistillJob:
        output = fields.pop("output")
        parser.add_argument("-o", "-output", "--output", required=True, help=output.description)
    add_flags(parser, fields)
    given: Mapping[str, object] = {
        name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None
    }
    try:
        return kind.model_validate(given)
    except ValidationError as exc:
        parser.error(validation_line(exc))


def checked_spec(job: CompareJob, model: str) -> ModelSpec:
    """Return how to load a model. Raises TrainError."""
    try:
        return job.spec(model)
    except ModelError as exc:
        raise TrainError(f"{model}: {exc}") from exc
