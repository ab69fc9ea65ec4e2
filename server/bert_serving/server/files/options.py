"""The options of bert-serving-encode. Those of the model are the server's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ..model.spec import ModelOptions, split_list, validation_line
from ..number_formats import Dtype
from ..settings import OneLineParser, add_flags

InputFormat = Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet", "arrow"]


class FileJob(ModelOptions):
    """Which texts become vectors, how, and where these go. Frozen; raises pydantic.ValidationError."""

    inputs: tuple[str, ...] = Field((), description="files, folders or patterns such as 'logs/*.csv'; -: a pipe")
    output: Path = Field(
        Path(), description="file for the vectors; its name ends with .parquet, .arrow, .npy, .npz or .jsonl"
    )
    text_column: str | None = Field(
        None, description="column with the texts; default: text, or the only column of strings"
    )
    columns: tuple[str, ...] = Field(
        (), description="columns that are copied to the output, beside the vectors; *: all; default: none"
    )
    input_format: InputFormat = Field(
        "auto", description="format of the input; auto: as the names of the files end"
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="character between the values of CSV; default: a comma, and a tab for TSV",
    )
    precision: Dtype = Field(
        "float32",
        description="number format of the vectors in the file; int8, uint8: each vector is scaled to the largest "
        "component; binary, ubinary: one bit for each component",
    )
    server: str | None = Field(
        None,
        description="a running server, as HOST, HOST:PORT or HOST:PORT:PORT_OUT; default: this process computes",
    )
    ray: str | None = Field(
        None, description="a Ray cluster whose machines compute: its address, or auto for the one of this machine"
    )
    device: str = Field("auto", description="device of this process: auto, cpu or cuda:N")
    dimensions: int | None = Field(None, ge=1, description="keep this many leading components of each vector")
    prompt: str | None = Field(None, description="text that precedes each text")
    prompt_name: str | None = Field(None, description="name of one of the model's prompts")
    long_text: Literal["truncate", "chunk"] = Field(
        "truncate", description="chunk: read long texts completely, in overlapping windows"
    )
    dedup: bool = Field(False, description="compute equal texts of a window once")
    window: int = Field(
        16_384,
        ge=1,
        description="rows that are computed and written together; after a crash, at most so many are lost",
    )

    @model_validator(mode="after")
    def _a_server_has_its_own_model(self) -> FileJob:
        if self.server is not None:
            others = sorted(self.model_fields_set & {*ModelOptions.model_fields, "device"})
            if others:
                raise ValueError(
                    f"{others[0]} has no effect with server, which has a model and settings of its own"
                )
        return self

    @model_validator(mode="after")
    def _one_of_them_computes(self) -> FileJob:
        if self.ray is not None and self.server is not None:
            raise ValueError("server and ray exclude each other")
        return self

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_are_split(cls, value: object) -> object:
        return split_list(value)


def parse_job(argv: Sequence[str] | None = None) -> FileJob:
    """Return the job of a command line. Prints one line and exits with 2 if a value is invalid."""
    parser = OneLineParser(prog="bert-serving-encode", description="Write the vectors of the texts in files.")
    fields = dict(FileJob.model_fields)
    inputs, output = fields.pop("inputs"), fields.pop("output")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs.description)
    parser.add_argument("-o", "-output", "--output", required=True, help=output.description)
    add_flags(parser, fields)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        return FileJob(**given)
    except ValidationError as exc:
        parser.error(validation_line(exc))
