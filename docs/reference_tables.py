"""The pages of docs/reference/ that are tables: settings, HTTP routes, errors. build_reference.py writes them.

Unlike the other pages, these are made by importing the code: the settings, the HTTP application and the errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from bert_serving.client import AsyncBertClient
from bert_serving.protocol import Unavailable
from bert_serving.protocol.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    Unauthorized,
    WorkerFailed,
)
from bert_serving.server.gateway.app import create_app
from bert_serving.server.gateway.known_models import KnownModels, ServerStatus
from bert_serving.server.gateway.limits import BodyLimits
from bert_serving.server.gateway.memory import GatewayMemory
from bert_serving.server.gateway.openapi import document, operations_of
from bert_serving.server.gateway.service import Service
from bert_serving.server.model.spec import ModelOptions
from bert_serving.server.settings import Settings
from bert_serving.server.supervisor.launch import body_limits
from pydantic.fields import FieldInfo

#: What to do about each error. A new class of errors must be added here.
WHAT_TO_DO: Mapping[type[ServingError], str] = {
    InvalidRequest: "Change the request: the message says what was expected. Do not send it again as it is.",
    PayloadTooLarge: "Send fewer or shorter texts in one request, or raise [the limit](../http.md#limits).",
    Unauthorized: "Send an API key that the server knows: see "
    "[Security](../security.md#add-an-api-key-open-the-http-port).",
    Overloaded: "Send the request again after the time in `Retry-After`. Our clients do this by themselves. If it "
    "happens all the time, see [429](../troubleshooting.md#429-the-queue-is-full).",
    WorkerFailed: "Look at the server's log: a worker failed on this request. Other requests are not affected.",
    Unavailable: "Send the request again later: the server starts, stops or has lost its workers. Our clients do "
    "this by themselves.",
    DeadlineExceeded: "Set a longer timeout, send smaller requests, or add workers.",
    ServingError: "Report it, with the server's log: this is a fault of the server.",
}


def settings_page() -> str:
    """Return the table of all flags and variables of bert-serving-start."""
    fields = Settings.model_fields
    groups = {
        "The model": {name: fields[name] for name in ModelOptions.model_fields},
        "The server": {name: each for name, each in fields.items() if name not in ModelOptions.model_fields},
    }
    blocks = [
        "# Flags and variables",
        "Every option of `bert-serving-start` is a flag, with one dash or two, and an environment variable. A "
        "flag overrides a variable. `bert-serving-start --help` prints the same, and so does "
        "`bert-serving-doctor --help`, which takes these options too. "
        "[Operations](../operations.md#settings) says which of them matter first.",
    ]
    for title, group in groups.items():
        rows = [_setting_row(name, field) for name, field in group.items()]
        blocks += [f"## {title}", table(("flag, and variable", "default", "meaning"), rows)]
    return page(blocks)


def _setting_row(name: str, field: FieldInfo) -> Sequence[str]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    aliases = extra.get("aliases", [])
    assert isinstance(aliases, list)
    names = [f"-{flag}" for flag in (name, *aliases)] + [f"BERT_SERVING_{name.upper()}"]
    return "<br>".join(f"`{each}`" for each in names), _default(field.default), str(field.description)


def _default(value: object) -> str:
    if value is None or value in ((), ""):
        return ""  # the meaning says what happens then
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def routes_page() -> str:
    """Return the list of all HTTP routes, from the OpenAPI document."""
    found = openapi_document()
    blocks = [
        "# HTTP routes",
        "The same port serves the routes of several APIs. A running server has this list at `/docs`, with a form "
        "for each route, and at `/openapi.json`. [HTTP](../http.md) says what the routes have in common.",
    ]
    for tag in found["tags"]:
        operations = [
            (method, path, operation)
            for path, methods in found["paths"].items()
            for method, operation in methods.items()
            if tag["name"] in operation["tags"]
        ]
        blocks += [f"## {tag['name']}", *([tag["description"]] if tag["description"] else [])]
        for method, path, operation in operations:
            blocks += _route_blocks(method, path, operation)
    return page(blocks)


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of a server whose model is not known, and that requires a key."""

    async def read_status() -> ServerStatus:
        raise Unavailable("there is no server")

    limits = BodyLimits(**body_limits(Settings()))
    models = KnownModels(read_status, Path())
    service = Service(AsyncBertClient(), "MODEL", models, limits, GatewayMemory(limits.held_bytes))
    with TemporaryDirectory() as folder, patch.dict(os.environ, PROMETHEUS_MULTIPROC_DIR=folder):
        operations = operations_of(create_app(service).router)  # its metrics need the folder
    return document(operations, version="", model_name="MODEL", model=None, has_keys=True)


def _route_blocks(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}"
    yield str(operation["description"])
    if operation.get("security") == []:
        yield "Needs no API key."
    rows = [_field_row(name, schema) for name, schema in _body_fields(operation).items()]
    if rows:
        yield table(("field", "default", "meaning"), rows)
    statuses = sorted(operation["responses"])
    yield f"Statuses: {', '.join(statuses)}."


def _body_fields(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    schema: Mapping[str, Any] = next((each["schema"] for each in content.values()), {})
    return dict(sorted(schema.get("properties", {}).items(), key=lambda each: "default" in each[1]))


def _field_row(name: str, schema: Mapping[str, Any]) -> Sequence[str]:
    default = schema.get("default")
    shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    return f"`{name}`" + ("" if "default" in schema else " (required)"), shown, str(schema.get("description", ""))


def errors_page() -> str:
    """Return the table of all errors, with what to do about each."""
    rows = [
        (f"`{kind.code}`", str(kind.http_status), f"`{kind.__name__}`", f"{_first_sentence(kind)} {what}")
        for kind, what in WHAT_TO_DO.items()
    ]
    return page(
        [
            "# Errors",
            "A request that fails has one of these codes. The code is in the label `code` of the "
            "[metrics](../metrics.md), the status is that of most HTTP routes ([the others](../http.md#errors)), "
            "and the class is what the [Python client](client.md#errors) raises. "
            "[Troubleshooting](../troubleshooting.md) has the messages.",
            table(("code", "HTTP status", "class in Python", "what it means, and what to do"), rows),
        ]
    )


def _first_sentence(kind: type[ServingError]) -> str:
    return "" if kind is ServingError else f"{str(kind.__doc__).partition('.')[0]}."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def page(blocks: Sequence[str]) -> str:
    """Return the text of a page."""
    return "\n\n".join(
        ["<!-- Built by `make docs` from the code. Change that instead of this file. -->", *blocks, ""]
    )
