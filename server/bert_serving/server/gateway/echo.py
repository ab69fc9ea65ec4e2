"""The caller's own id of a request, returned as it was sent."""

from __future__ import annotations

import json
from typing import NoReturn

import orjson
from bert_serving.protocol import InvalidRequest


def echo(raw: bytes, identifier: object) -> orjson.Fragment:
    """Return the value of "id" in a JSON object, unchanged, as JSON text.

    raw: the JSON object. identifier: the parsed value of "id". Raises InvalidRequest.
    """
    try:
        is_small = isinstance(identifier, int) and identifier.bit_length() < 64
        if not (is_small or isinstance(identifier, str | None)):
            # Parsing may have rounded a number in the id. Parse again, and keep each number as text.
            identifier = json.loads(
                raw, parse_int=orjson.Fragment, parse_float=orjson.Fragment, parse_constant=_NotJsonValue
            )["id"]
        return orjson.Fragment(orjson.dumps(identifier, default=_NotJsonValue.refuse))
    except (TypeError, RecursionError) as exc:
        raise InvalidRequest(f"id cannot be returned: {exc.__cause__ or exc}") from exc


class _NotJsonValue:
    """NaN, Infinity or -Infinity: Python's `json` accepts them, but JSON has no such values."""

    def __init__(self, name: str) -> None:
        self._name = name

    def refuse(self) -> NoReturn:
        raise ValueError(f"{self._name} is not valid JSON")
