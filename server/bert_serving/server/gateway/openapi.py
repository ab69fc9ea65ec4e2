"""The part of the OpenAPI document that FastAPI cannot derive, because handlers validate bodies themselves."""

from __future__ import annotations

from pydantic import BaseModel


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
