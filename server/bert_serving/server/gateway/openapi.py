"""The OpenAPI document, from which the page /docs is made.

Each route is described by an `Operation`; see Dialect.add_routes. FastAPI cannot derive the description, because
handlers validate bodies themselves. The types of replies only describe: a reply is sent as its handler made it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bert_serving.protocol import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    Unavailable,
    WorkerFailed,
)
from fastapi import APIRouter
from pydantic import BaseModel, TypeAdapter

from .errors import DefaultError, Unprocessable, UnreadableBody, WrongModel
from .known_models import Ability, Model

if TYPE_CHECKING:
    from .dialect import Dialect

Json: TypeAlias = "dict[str, Any]"
#: json: bodies and replies are JSON; arrays: a reply may also be an array as raw bytes or in NumPy's format;
#: lines: bodies and replies have one JSON value in each line; text: a reply is plain text.
Format = Literal["json", "arrays", "lines", "text"]

_JSON, _LINES, _TEXT = "application/json", "application/x-ndjson", "text/plain"
_BINARY = {"type": "string", "format": "binary"}
_ARRAYS = {
    "application/octet-stream": {"schema": {**_BINARY, "description": "the numbers alone, little-endian"}},
    "application/x-npy": {"schema": {**_BINARY, "description": "a file in NumPy's format, for numpy.load"}},
}
_ARRAY_HEADERS = {
    "x-shape": {"description": "the shape of an array in raw bytes, such as 2,384", "schema": {"type": "string"}},
    "x-dtype": {"description": "NumPy's name of its number format", "schema": {"type": "string"}},
}
_RETRY_AFTER = {"Retry-After": {"description": "seconds until a retry", "schema": {"type": "string"}}}

_KINDS = {
    "embedding": "an embedding model",
    "splade": "a sparse model",
    "classifier": "a classifier",
    "reranker": "a reranker",
}
_NEEDS: dict[Ability, str] = {
    "embed": "an embedding model (with a pooling other than NONE and SPLADE)",
    "embed_sparse": "a sparse model",
    "rerank": "a reranker",
    "classify": "a classifier or a reranker",
}

_KEYS = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

# The errors of a route. The describe_error of its dialect says which status and which body each of them has.
_ERRORS = (
    UnreadableBody("a header is not valid"),
    Overloaded("the server is full: try again later"),
    ServingError("internal error"),
    Unavailable("the server is stopping, is full, or does not answer"),
    DeadlineExceeded("the deadline in X-Request-Timeout-Ms has passed"),
)
_ERRORS_OF_BODIES = (
    UnreadableBody("the body is not JSON"),
    Unprocessable("a field is missing or has a wrong value"),
    InvalidRequest("a text or an option is not valid"),
    WrongModel("the model cannot do this"),
    PayloadTooLarge("the request is too large"),
    WorkerFailed("the model fails on a text"),
)
_ERRORS_OF_KEYS = (Unauthorized("the API key is missing or wrong"),)
# These errors come before the request has reached its route, so their format is not that of a dialect.
_ERRORS_OF_CONNECTIONS = {
    400: "the request is not HTTP",
    408: "the request did not arrive in time",
    429: "too many requests wait on this connection",
    431: "the headers are too large",
    503: "too many connections are open",
}


@dataclass(frozen=True, slots=True)
class Docs:
    """What a route says about itself in addition to its path, its docstring and the model of its body.

    reply: the type of the JSON reply, or of a line of it. examples: bodies to which the reply has status 200, by
    their names; the first one is filled in on /docs. query: a TypedDict of the query parameters. needs: what the
    model must be able to do, at least one of these; empty: any model will do.
    """

    reply: object = object
    examples: Mapping[str, object] = field(default_factory=dict)
    format: Format = "json"
    query: type | None = None
    needs: Sequence[Ability] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """A route as the document describes it.

    paths: the path of the route, and other paths with the same handler. body: the model of the body; None: the
    route is for GET. is_public: no API key is required.
    """

    dialect: Dialect
    paths: Sequence[str]
    handler: Callable[..., object]
    body: type[BaseModel] | None
    is_public: bool
    docs: Docs

    @property
    def path(self) -> str:
        """The path as OpenAPI writes it: without the types of parameters."""
        return re.sub(r":\w+}", "}", self.paths[0])

    @property
    def method(self) -> str:
        """The HTTP method, in lower case."""
        return "get" if self.body is None else "post"

    def is_served_by(self, model: Model | None) -> bool:
        """Return whether the model can do what the route is for. If the model is not known yet, it can."""
        return model is None or not self.docs.needs or bool(model.abilities & {*self.docs.needs})


def operations_of(*routers: APIRouter) -> list[Operation]:
    """Return the operations of all routes that have one."""
    found = (getattr(route, "operation", None) for router in routers for route in router.routes)
    return [operation for operation in found if operation is not None]


class _Types:
    """The types that the document refers to. Schemas of types with a name are in the document's components."""

    def __init__(self, types: Sequence[Any]) -> None:
        self._types = types
        schemas, definitions = TypeAdapter.json_schemas(
            [(str(i), "serialization", TypeAdapter(each)) for i, each in enumerate(types)],
            ref_template="#/components/schemas/{model}",
        )
        self._schemas = [schemas[str(i), "serialization"] for i in range(len(types))]
        self.definitions: Json = definitions.get("$defs", {})

    def schema(self, of: object) -> Json:
        """Return the schema of one of the types, which may be a reference."""
        return self._schemas[next(i for i, each in enumerate(self._types) if each is of)]


def document(
    operations: Sequence[Operation], *, version: str, model_name: str, model: Model | None, has_keys: bool
) -> Json:
    """Return the OpenAPI document for a model.

    model: None if it is still being loaded. has_keys: whether the server requires an API key.
    """
    types = _Types(
        [
            DefaultError,
            *(each.dialect.error for each in operations),
            *(each.docs.reply for each in operations),
        ]
    )
    paths: dict[str, Json] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method] = _operation(each, types, model, model_name)
    kind = "still loading" if model is None else _KINDS[model.kind]
    tags = {each.dialect.tag: each.dialect.about for each in operations}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bert-embedding-service",
            "version": version,
            "description": f"Sentences in, vectors out. The model is {model_name}: {kind}. Each section below has "
            "the routes of another API, so that clients of this API work here.",
        },
        "tags": [{"name": tag, "description": about} for tag, about in tags.items()],
        "paths": paths,
        "components": {"schemas": types.definitions, **({"securitySchemes": _KEYS} if has_keys else {})},
        **({"security": [{name: []} for name in _KEYS]} if has_keys else {}),
    }


def _operation(operation: Operation, types: _Types, model: Model | None, model_name: str) -> Json:
    docs = operation.docs
    name = getattr(operation.handler, "__name__", "")
    is_served = operation.is_served_by(model)
    parameters = [*_path_parameters(operation.path, model_name), *_query_parameters(docs.query)]
    return {
        "tags": [operation.dialect.tag],
        "summary": name.replace("_", " ").capitalize() + ("" if is_served else " (not with this model)"),
        "description": _description(operation, model),
        "operationId": re.sub(r"\W+", "_", name + operation.path).strip("_"),
        **({"parameters": parameters} if parameters else {}),
        **({} if operation.body is None else {"requestBody": _request_body(operation.body, docs)}),
        "responses": {**_replies(docs, types), **_errors(operation, types)},
        **({"security": []} if operation.is_public else {}),
        "x-is-served": is_served,
    }


def _description(operation: Operation, model: Model | None) -> str:
    parts = [inspect.cleandoc(operation.handler.__doc__ or "")]
    if operation.docs.needs:
        parts.append(f"Needs {', or '.join(_NEEDS[each] for each in operation.docs.needs)}.")
    if model is not None and not operation.is_served_by(model):
        parts.append(f"**The model that is served is {_KINDS[model.kind]}: this route responds with an error.**")
    if operation.paths[1:]:
        parts.append(f"Also at {', '.join(f'`{path}`' for path in operation.paths[1:])}.")
    return "\n\n".join(parts)


def _path_parameters(path: str, model_name: str) -> list[Json]:
    """Return OpenAPI's description of the parameters in a path. They are names of models."""
    schema = {"type": "string", "minLength": 1}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema, "example": model_name}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(query: type | None) -> list[Json]:
    properties = {} if query is None else TypeAdapter(query).json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()
    ]


def _request_body(body: type[BaseModel], docs: Docs) -> Json:
    schema = body.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    examples = {name: {"value": value} for name, value in docs.examples.items()}
    # Swagger UI puts examples of x-ndjson into quotes, and asks for a file if there is a contentMediaType.
    media_type, schema = (_TEXT, _lines(schema)) if docs.format == "lines" else (_JSON, schema)
    return {"required": True, "content": {media_type: {"schema": schema, "examples": examples}}}


def _replies(docs: Docs, types: _Types) -> Json:
    schema = types.schema(docs.reply)
    contents: dict[Format, Json] = {
        "json": {_JSON: {"schema": schema}},
        "arrays": {_JSON: {"schema": schema}, **_ARRAYS},
        "lines": {_LINES: {"schema": {**_lines(schema), "contentMediaType": _LINES}}},
        "text": {_TEXT: {"schema": schema}},
    }
    headers = {"headers": _ARRAY_HEADERS} if docs.format == "arrays" else {}
    return {"200": {"description": "success", "content": contents[docs.format], **headers}}


def _lines(schema: Json) -> Json:
    description = "JSON in each line; contentSchema is the schema of a line"
    return {"type": "string", "description": description, "contentSchema": schema}


def _errors(operation: Operation, types: _Types) -> Json:
    """Return the responses to requests that fail, by status."""
    errors: list[ServingError] = [] if operation.body is None else [*_ERRORS_OF_BODIES]
    errors += [] if operation.is_public else _ERRORS_OF_KEYS
    errors += _ERRORS
    texts: dict[int, list[str]] = {}
    bodies: dict[int, object] = {}
    for error in errors:
        status, body = operation.dialect.describe_error(error)
        texts.setdefault(status, []).append(error.message)
        bodies.setdefault(status, body)
    for status, text in _ERRORS_OF_CONNECTIONS.items():
        texts.setdefault(status, []).append(text)
    own, default = types.schema(operation.dialect.error), types.schema(DefaultError)
    return {
        str(status): {
            "description": "; ".join(texts[status]),
            "content": {_JSON: _error_content(status, own, default, bodies.get(status))},
            **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
        }
        for status in sorted(texts)
    }


def _error_content(status: int, own: Json, default: Json, example: object) -> Json:
    if example is None:
        return {"schema": default}
    is_either = status in _ERRORS_OF_CONNECTIONS and own != default
    return {"schema": {"anyOf": [own, default]} if is_either else own, "example": example}


def _inlined(schema: Any, definitions: Json) -> Any:
    """Return the schema with each reference replaced by its definition.

    Bodies of several dialects have the same name, so they are not in the document's components.
    """
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
