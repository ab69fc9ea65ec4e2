"""Every option of a model: its name, type, default and help text.

`ModelOptions` is the only place where these options are defined. `Settings` inherits them, so they are also
flags and environment variables of the server. `ModelSpec` adds the device; the server sends a `ModelSpec` to each
worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from bert_serving.protocol import POOLING_STRATEGIES, EncodeOptions
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import ModelError

Dtype = Literal["auto", "float32", "float16", "bfloat16", "int8"]


def split_list(value: object) -> object:
    """Return the value of a list option: "0 1" and "0,1" are split; a number becomes a list of one number."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    return tuple(value) if isinstance(value, Sequence) else value


class ModelOptions(BaseModel):
    """What to load and how to compute with it. Frozen; raises pydantic.ValidationError for bad values."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_dir: str | None = Field(
        None, description="folder of a model, or its name on the Hugging Face hub; default: the demo model"
    )
    revision: str | None = Field(
        None, description="commit, tag or branch of a model on the hub; default: its main branch"
    )
    tuned_model_dir: str | None = Field(
        None, description="folder of a fine-tuned checkpoint, whose weights replace those in -model_dir"
    )
    config_name: str | None = Field(
        None, description="file name of the model's config; default: config.json, else Google's bert_config.json"
    )
    ckpt_name: str | None = Field(
        None,
        description="name, without .index, of a TensorFlow checkpoint in -tuned_model_dir or -model_dir; default: "
        "bert_model.ckpt, if the folder has no other weights",
    )
    model_module: str | None = Field(
        None, description="Python module, or its .py file, that registers your own architecture; default: none"
    )
    trust_remote_code: bool = Field(
        False, description="run the Python code that comes with the model; only for models whose code you trust"
    )
    dtype: Dtype = Field(
        "auto",
        description="number format of the forward pass; auto: float16 on a GPU, bfloat16 on a CPU with hardware "
        "support for it, else float32; int8: 8-bit integers where the vectors allow it, and bfloat16 or float32 "
        "for the rest, in a compiled pass on a CPU with AVX-512 VNNI",
    )
    compile: Literal["auto", "off", "wait"] = Field(
        "auto",
        description="compile the forward pass for this processor, which takes up to a minute and is kept in "
        "compile_cache; auto: serve at once, and change over when it is done; wait: serve when it is done; on a "
        "GPU, auto and wait record passes as CUDA graphs",
    )
    compile_cache: str | None = Field(
        None,
        description="folder for compiled passes; default: bert-serving/compiled in the user's cache folder",
    )
    max_seq_len: Annotated[int, Field(ge=3)] | Literal["NONE"] | None = Field(
        None,
        description="longest sequence in tokens, special tokens included; NONE: the model's number of positions; "
        "default: the limit that the model is configured with",
    )
    max_batch_tokens: int = Field(
        16384,
        ge=64,
        description="largest number of tokens in a batch of a worker and in one forward pass; on a CPU a pass "
        "has at most 1024",
    )
    pooling_strategy: tuple[str, ...] = Field(
        ("auto",),
        description=f"how token vectors become one vector: {', '.join(POOLING_STRATEGIES)}; several are "
        "concatenated; auto: the pooling configured in the model folder, or REDUCE_MEAN if there is none or "
        "-pooling_layer is given; NONE: one vector for each token",
    )
    pooling_layer: tuple[int, ...] | None = Field(
        None,
        description="layers that are pooled, concatenated in this order; -1 is the last, 0 the first; default: "
        "-2, or -1 for the pooling configured in the model folder",
    )
    all_layers: bool = Field(
        False, description="also load the layers above those of -pooling_layer, for requests that choose them"
    )
    normalize: bool | None = Field(
        None, description="divide vectors by their L2 norm; default: as configured in the model folder, else no"
    )
    num_labels: int | None = Field(
        None, ge=1, description="number of labels of a classification head; default: as many as its weights have"
    )
    mask_cls_sep: bool = Field(
        False, description="hide special tokens from the attention of other tokens and from the pooling"
    )
    no_special_token: bool = Field(
        False, description="add no special tokens to texts that are sent as lists of tokens"
    )
    no_position_embeddings: bool = Field(False, description="leave out the position embeddings")
    cased_tokenization: bool = Field(
        False, description="do not lower-case texts, even if the model's tokenizer is configured to do so"
    )

    @field_validator("model_dir", "tuned_model_dir", "model_module", "compile_cache", mode="before")
    @classmethod
    def _paths_are_strings(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("pooling_strategy", "pooling_layer", mode="before")
    @classmethod
    def _lists_are_split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("max_seq_len", mode="before")
    @classmethod
    def _none_in_any_case(cls, value: object) -> object:
        return "NONE" if isinstance(value, str) and value.upper() == "NONE" else value

    @field_validator("pooling_strategy")
    @classmethod
    def _strategies_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(pooling_strategy=names).pooling_strategy or ("auto",)

    @field_validator("pooling_layer")
    @classmethod
    def _layers_are_a_short_list(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return _checked(pooling_layer=layers).pooling_layer


class ModelSpec(ModelOptions):
    """The options of one model on one device. They tell a worker process what to load.

    Values must have exactly the declared types: the string "12" is not accepted as a number.
    """

    model_config = ConfigDict(strict=True)

    device: str = Field("auto", description='"auto", "cpu" or "cuda:N"; auto: the first GPU, or the CPU')

    @classmethod
    def of(cls, options: ModelOptions, *, device: str) -> ModelSpec:
        """Return a spec for a device: the model options among the given options (such as a server's Settings)."""
        return cls(**{name: getattr(options, name) for name in ModelOptions.model_fields}, device=device)

    @classmethod
    def checked(cls, **options: object) -> ModelSpec:
        """Return a spec of the options. Raises ModelError with a one-line message if an option is invalid."""
        try:
            return cls.model_validate(options)
        except ValidationError as exc:
            raise ModelError(validation_line(exc).replace(": input should be ", " must be ", 1)) from exc


def validation_line(exc: ValidationError) -> str:
    """Return the first problem of a validation as one line that names the option and the value."""
    problem = exc.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    name = problem["loc"][0] if problem["loc"] else None
    if name is None or message.startswith(str(name)):
        return message
    return f"{name}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _checked(
    *, pooling_strategy: tuple[str, ...] | None = None, pooling_layer: tuple[int, ...] | None = None
) -> EncodeOptions:
    """Return EncodeOptions with these options. Raises only ValueError, because pydantic expects no TypeError."""
    try:
        return EncodeOptions(pooling_strategy=pooling_strategy, pooling_layer=pooling_layer)
    except TypeError as exc:
        raise ValueError(str(exc)) from exc
