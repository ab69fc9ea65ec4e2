"""The arguments of `build_app`: settings of the server, and how replicas are placed and scaled.

`serve run` passes every value as a string; a config file passes numbers and booleans too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..server.model.errors import ModelError
from ..server.model.spec import ModelOptions, validation_line
from ..server.settings import Settings

#: The settings of bert-serving-start that also have a meaning with Ray.
SERVER_SETTINGS = frozenset(ModelOptions.model_fields) | {
    "api_key",
    "api_key_file",
    "cache_mb",
    "cors",
    "cpu",
    "drain_timeout",
    "flow_share",
    "http_max_form_fields",
    "http_max_nesting",
    "http_max_texts",
    "http_max_tokenize_chars",
    "http_memory_mb",
    "http_trusted_proxies",
    "http_workers",
    "max_batch_size",
    "max_message_mb",
    "memory_mb",
    "priority_batch_size",
    "protect_metrics",
    "queue_capacity",
    "served_model_name",
    "worker_timeout",
}


_FOR_OTHER_VECTORS = {"fp16", "fixed_embed_length", "show_tokens_to_client"}


class Replicas(BaseModel):
    """How many replicas of the model there are, and what each of them takes. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_replicas: int | None = Field(None, ge=1, description="fixed number of replicas; default: 1")
    min_replicas: int = Field(1, ge=1, description="least number of replicas; needs max_replicas")
    max_replicas: int | None = Field(
        None, ge=1, description="largest number of replicas; without it, the number of replicas is fixed"
    )
    num_cpus: float = Field(1, gt=0, description="CPUs of a replica, which are also its threads")
    num_gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs of a replica; default: 1 if there are GPUs now and cpu is not set, else 0",
    )
    target_wait_s: float = Field(
        2.0, gt=0, description="seconds of waiting work beyond which replicas are added; needs max_replicas"
    )
    upscale_delay_s: float = Field(
        10.0, ge=0, description="seconds for which the work must wait before replicas are added"
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, description="seconds for which fewer replicas must be enough before some are removed"
    )

    @model_validator(mode="after")
    def _number_is_fixed_or_has_limits(self) -> Replicas:
        given = self.model_fields_set
        if self.num_replicas is not None and given & {"min_replicas", "max_replicas"}:
            raise ValueError("num_replicas is a fixed number: give either it, or min_replicas and max_replicas")
        if self.max_replicas is None:
            if idle := sorted(given & {"min_replicas", "target_wait_s", "upscale_delay_s", "downscale_delay_s"}):
                raise ValueError(f"{idle[0]} has no effect without max_replicas")
        elif self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must be at most max_replicas, got {self.min_replicas} and {self.max_replicas}"
            )
        return self


def parse_args(args: Mapping[str, Any]) -> tuple[Replicas, Settings]:
    """Return what the arguments say. BERT_SERVING_... variables are read for settings that are not given.

    Raises ModelError with a one-line message if a name is not known or a value is not valid.
    """
    of_replicas = {name: value for name, value in args.items() if name in Replicas.model_fields}
    rest = {name: value for name, value in args.items() if name not in of_replicas}
    for name in rest:
        if name in SERVER_SETTINGS:
            continue
        if name in Settings.model_fields:
            raise ModelError(f"{name} is an option of bert-serving-start that has no meaning with Ray")
        raise ModelError(f"there is no option {name!r}: see docs/ray.md for the list")
    try:
        replicas, settings = Replicas(**of_replicas), Settings(**rest)
    except ValidationError as exc:
        raise ModelError(validation_line(exc)) from exc
    # Variables for ports and the like may stay from bert-serving-start; these would give other vectors.
    if others := sorted(settings.model_fields_set & _FOR_OTHER_VECTORS):
        raise ModelError(f"{others[0]} has no meaning with Ray: remove BERT_SERVING_{others[0].upper()}")
    return replicas, settings
