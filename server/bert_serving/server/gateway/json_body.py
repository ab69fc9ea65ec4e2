"""Reads JSON bodies, also those in which a string has a lone surrogate."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bert_serving.protocol import InvalidRequest, parse_json
from pydantic_core import from_json

#: The most levels that the parser reads.
MAX_NESTING = 200

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_SLOW_BYTES = 2 << 20  # the parser that reads lone surrogates is slow, and other requests wait for it


def read_json(raw: bytes, *, max_nesting: int = MAX_NESTING, allow_inf_nan: bool = True) -> object:
    """Return the JSON value of a body. Raises ValueError if it is not JSON, or has too many levels.

    A lone surrogate becomes NUL: neither is text, and only NUL can be written as UTF-8. allow_inf_nan: also read
    NaN and Infinity, which some clients send.
    """
    try:
        value: object = from_json(raw, allow_inf_nan=allow_inf_nan)
    except ValueError as exc:
        if _ESCAPED_SURROGATE.search(raw) is None:
            raise
        if len(raw) > _MAX_SLOW_BYTES:
            raise ValueError(f"{exc}; with lone surrogates it may have at most {_MAX_SLOW_BYTES} bytes") from exc
        try:
            value = _without_surrogates(parse_json(raw))
        except InvalidRequest:
            raise exc from None
    if max_nesting < MAX_NESTING:
        check_nesting(value, raw, max_nesting)
    return value


def check_nesting(value: object, raw: bytes, max_nesting: int) -> None:
    """Raise ValueError if lists and objects in a JSON value have too many levels. raw: the JSON text."""
    if raw.count(b"[") + raw.count(b"{") <= max_nesting:  # almost always
        return
    containers, depth = [value], 0
    while containers:
        if (depth := depth + 1) > max_nesting:
            raise ValueError(f"it has more than {max_nesting} levels of lists and objects")
        containers = [each for one in containers for each in _items(one) if isinstance(each, list | dict)]


def _items(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\0", value)
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_LONE_SURROGATE.sub("\0", key): _without_surrogates(each) for key, each in value.items()}
    return value
