"""Fields that several dialects have, and how lenient they are: null is absent, unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from bert_serving.protocol import Text
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class Body(BaseModel):
    """A body whose unknown fields are ignored: clients send more than a server has."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


def _texts(value: Any) -> list[Any]:
    """Return one text or many, as strings or token ids, as a list. Raises ValueError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [value] if value and type(value[0]) is int else value
    raise ValueError("must be a string, a list of strings, or token ids")


def _strings(value: Any) -> list[Any]:
    """Return one string or many as a list. Raises ValueError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise ValueError("must be a string or a list of strings")


_STRING_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_IDS = {"type": "array", "items": {"type": "integer"}}

#: One text or many, each a string or token ids. What they hold is checked once, by the service.
Texts = Annotated[
    Any,
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [*_STRING_OR_LIST["anyOf"], _IDS, {"type": "array", "items": _IDS}]}),
    Field(examples=[["hello world"]]),
]
#: One string or many.
Strings = Annotated[Any, BeforeValidator(_strings), WithJsonSchema(_STRING_OR_LIST), Field(examples=[["hello"]])]

#: The side on which a text is cut; TEI's clients write it either way.
Side = Annotated[
    Literal["left", "right"] | None, BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v)
]
Dimensions = Annotated[
    int | None, Field(ge=1, le=1 << 31, strict=True, description="leading components that are kept")
]


def num_chars(texts: Sequence[Text]) -> int:
    """Return the characters of texts that are strings."""
    return sum(len(text) for text in texts if isinstance(text, str))
