"""The part of the OpenAPI document that FastAPI cannot derive, because handlers validate bodies themselves."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

#: The statuses that any route may return, for FastAPI's `responses`. Each dialect has its own format of errors.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is not valid"},
    401: {"description": "the API key is missing or wrong"},
    408: {"description": "the request did not arrive in time"},
    413: {"description": "the request is too large"},
    422: {"description": "a field is not valid"},
    424: {"description": "the model fails on a text"},
    429: {"description": "the server is full: try again after Retry-After"},
    431: {"description": "the headers are too large"},
    500: {"description": "internal error"},
    503: {"description": "the server is not ready, or stops"},
    504: {"description": "the deadline in X-Request-Timeout-Ms has passed"},
}


def path_parameters(path: str) -> dict[str, object]:
    """Return OpenAPI's description of the parameters in a path, such as /models/{name:path}."""
    names = re.findall(r"{(\w+)", path)
    found = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"parameters": found} if found else {}


def request_body(body: type[BaseModel]) -> dict[str, object]:
    """Return OpenAPI's description of a JSON request body."""
    schema: dict[str, object] = body.model_json_schema()
    definitions = schema.pop("$defs", {})
    assert isinstance(definitions, dict)
    content = {"application/json": {"schema": _inlined(schema, definitions)}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: object, definitions: dict[str, object]) -> object:
    """Return the schema with each reference replaced by its definition.

    The OpenAPI document has no place for definitions of a single route.
    """
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
