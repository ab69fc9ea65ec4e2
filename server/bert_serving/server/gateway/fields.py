"""Fields that several dialects have. They are lenient: null means absent, and unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from .texts import OnError


class Body(BaseModel):
    """A body whose unknown fields are ignored: clients send fields that only other servers have."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class TextsBody(Body):
    """A body with texts to encode."""

    on_error: OnError | None = Field(
        None,
        description='what a text that cannot be encoded leads to: an "error" (default), or "null" as its result',
    )


def _texts(value: object) -> list[object]:
    """Return a list of texts (strings or token ids), also if `value` is a single text. Raises ValueError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [value] if value and type(value[0]) is int else value
    raise ValueError("must be a string, a list of strings, or token ids")


def _strings(value: object) -> list[object]:
    """Return a list of strings, also if `value` is a single string. Raises ValueError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise ValueError("must be a string or a list of strings")


_STRING_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_IDS = {"type": "array", "items": {"type": "integer"}}

#: One text or several, each a string or token ids. Service.encode checks the elements.
Texts = Annotated[
    list[object],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [*_STRING_OR_LIST["anyOf"], _IDS, {"type": "array", "items": _IDS}]}),
]
#: One string or several. Service.encode checks the elements.
Strings = Annotated[list[object], BeforeValidator(_strings), WithJsonSchema(_STRING_OR_LIST)]


def _list(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise ValueError("must be a list of strings")


#: Several strings. Service.encode checks the elements.
TextList = Annotated[
    list[object], BeforeValidator(_list), WithJsonSchema({"type": "array", "items": {"type": "string"}})
]

#: The side on which a long text is truncated. TEI's clients also write "Left" and "Right".
Side = Annotated[
    Literal["left", "right"] | None, BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v)
]
Dimensions = Annotated[
    int | None, Field(ge=1, le=1 << 31, strict=True, description="number of leading components to keep")
]
