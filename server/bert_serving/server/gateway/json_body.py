"""Reads JSON bodies, also those in which a string has a lone surrogate."""

from __future__ import annotations

import re

from bert_serving.protocol import InvalidRequest, parse_json
from pydantic_core import from_json

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_SLOW_BYTES = 16 << 20  # the parser that reads lone surrogates is slow, and other requests wait for it


def read_json(raw: bytes, *, allow_inf_nan: bool = True) -> object:
    """Return the JSON value of a body. Raises ValueError if it is not JSON, or has more than 200 levels.

    allow_inf_nan: also read NaN and Infinity, which some clients send.
    """
    try:
        value: object = from_json(raw, allow_inf_nan=allow_inf_nan)
    except ValueError as exc:
        if len(raw) > _MAX_SLOW_BYTES or _ESCAPED_SURROGATE.search(raw) is None:
            raise
        try:
            value = parse_json(raw)
        except InvalidRequest:
            raise exc from None
    return value
