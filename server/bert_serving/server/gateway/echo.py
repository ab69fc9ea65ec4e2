"""The caller's own id of a request, returned as it was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import orjson
from bert_serving.protocol import InvalidRequest

_MAX_ID_CHARS = 64 << 10

# The parts of valid JSON that matter here: strings, the marks around and between values, and whatever is between.
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]|[^"\[\]{}:,]+', re.DOTALL)


def echo(raw: bytes, identifier: object) -> orjson.Fragment:
    """Return the value of "id" in a JSON object, unchanged, as JSON text.

    raw: the JSON object. identifier: the parsed value of "id". Raises InvalidRequest.
    """
    try:
        is_small = isinstance(identifier, int) and identifier.bit_length() < 64
        if not (is_small or isinstance(identifier, str | None)):
            # Parsing may have rounded a number in the id. Parse the id alone again, and keep each number as text.
            identifier = json.loads(_text_of_id(raw), parse_int=orjson.Fragment, parse_float=orjson.Fragment)
        return orjson.Fragment(orjson.dumps(identifier))
    except (TypeError, RecursionError) as exc:
        raise InvalidRequest(f"id cannot be returned: {exc}") from exc


def _text_of_id(raw: bytes) -> str:
    """Return the text of the value of "id"; if there are several, of the last one. raw: a valid JSON object."""
    text = raw.decode()
    begin, end = [(begin, end) for key, begin, end in _fields(text) if json.loads(key) == "id"][-1]
    if end - begin > _MAX_ID_CHARS:
        raise InvalidRequest(f"id may have at most {_MAX_ID_CHARS} characters, got {end - begin}")
    return text[begin:end]


def _fields(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (key as JSON, where its value begins, where it ends) for each field of a JSON object."""
    depth, begin, key, string = 0, 0, "", (0, 0)
    for token in _TOKENS.finditer(text):
        char = text[token.start()]
        if char == '"':
            string = token.start(), token.end()
        elif char in "{[":
            depth += 1
        elif depth == 1 and char == ":":
            key, begin = text[string[0] : string[1]], token.end()
        elif depth == 1 and char in ",}" and key:
            yield key, begin, token.start()
        if char in "}]":
            depth -= 1
