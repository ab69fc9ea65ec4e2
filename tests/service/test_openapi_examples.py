"""Every example in the OpenAPI document works on the model that is served, and its reply is as documented."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import jsonschema_rs
import numpy as np
import pytest
from openapi_spec_validator import validate

from tests.support.model_servers import ModelServers, Served
from tests.support.waiting import HANG_S

VECTORS = {"/v1/embeddings", "/embed", "/similarity", "/v1/embed", "/v2/embed", "/api/embed", "/api/embeddings"}
LABELS = {"/predict", "/classify"}
RANKINGS = {"/rerank", "/v1/rerank", "/v2/rerank"}
TERMS = {"/embed_sparse"}
#: The routes that need another kind of model, by the kind that is served.
NOT_SERVED = {
    "prompted": LABELS | RANKINGS | TERMS,
    "reranker": VECTORS | TERMS,
    "classifier": RANKINGS | TERMS,
    "sparse": VECTORS | LABELS | RANKINGS,
}
PUBLIC = {"/live", "/ready", "/metrics", "/health"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A request of the document. body: the example; None: the route is for GET."""

    path: str
    operation: Json
    name: str = ""
    media_type: str = ""
    body: Any = None

    def send(self, http: httpx.Client) -> httpx.Response:
        """Send the request as the page does."""
        values = {each["name"]: each.get("example") for each in self.operation.get("parameters", ())}
        path = self.path.format(**values)
        if self.body is None:
            return http.get(path)
        content = self.body if isinstance(self.body, str) else json.dumps(self.body)
        headers = {"Content-Type": self.media_type, "Accept": "application/json"}
        return http.post(path, content=content, headers=headers)


def document_of(served: Served) -> Json:
    """Return the OpenAPI document of a server."""
    document: Json = served.http.get("/openapi.json").json()
    return document


def examples_in(document: Json) -> Iterator[Example]:
    """Yield all examples of the document, and a request for each route without a body."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "get":
                yield Example(path, operation)
                continue
            ((media_type, content),) = operation["requestBody"]["content"].items()
            assert content["examples"], f"{path} has no example"
            for name, example in content["examples"].items():
                yield Example(path, operation, name, media_type, example["value"])


def strict(schema: Any) -> Any:
    """Return the schema so that other fields than those that it lists are errors, unless it allows them."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {} if "properties" not in schema else {"additionalProperties": False}
    return closed | {name: strict(value) for name, value in schema.items()}


def check_json(document: Json, schema: Json, value: object) -> None:
    """Raise jsonschema_rs.ValidationError unless the value has the schema, which may refer to the document."""
    jsonschema_rs.validate(strict({"components": document["components"], **schema}), value)


def check_content(document: Json, reply: httpx.Response, contents: Mapping[str, Json]) -> None:
    """Check that the reply has one of the documented media types, and its schema."""
    media_type = reply.headers["content-type"].partition(";")[0]
    assert media_type in contents
    schema = contents[media_type]["schema"]
    if media_type == "application/json":
        check_json(document, schema, reply.json())
    elif media_type == "application/x-ndjson":
        for line in reply.text.splitlines():
            check_json(document, schema["contentSchema"], json.loads(line))
    elif media_type == "application/x-npy":
        assert np.load(io.BytesIO(reply.content)).dtype == np.float32
    elif media_type == "application/octet-stream":
        shape = tuple(map(int, reply.headers["x-shape"].split(",")))
        assert np.frombuffer(reply.content, reply.headers["x-dtype"]).reshape(shape).size
    else:
        assert media_type == "text/plain"


@pytest.mark.parametrize("kind", NOT_SERVED)
def test_every_example_gets_the_reply_that_is_documented(model_servers: ModelServers, kind: str) -> None:
    served: Served = getattr(model_servers, kind)
    document = document_of(served)
    media_types, not_served = set(), set()
    for example in examples_in(document):
        reply = example.send(served.http)
        said = f"{example.path} ({example.name}): {reply.status_code} {reply.text[:1000]}"
        if example.operation["x-is-served"]:
            assert reply.status_code == 200, said
            media_types.add(reply.headers["content-type"].partition(";")[0])
        else:
            assert reply.status_code in (400, 422, 424), said
            assert "Needs " in example.operation["description"]
            not_served.add(example.path)
        check_content(document, reply, example.operation["responses"][str(reply.status_code)]["content"])
    assert not_served == NOT_SERVED[kind]
    assert media_types >= {"application/json", "application/x-ndjson", "application/x-npy", "text/plain"}


@pytest.mark.parametrize("kind", NOT_SERVED)
def test_the_document_is_valid(model_servers: ModelServers, kind: str) -> None:
    validate(document_of(getattr(model_servers, kind)))


def test_every_error_example_has_its_schema(model_servers: ModelServers) -> None:
    document = document_of(model_servers.prompted)
    num_examples = 0
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                (content,) = response["content"].values() if status != "200" else ({},)
                if "example" in content:
                    check_json(document, content["schema"], content["example"])
                    num_examples += 1
    assert num_examples > 100


def test_a_stream_returns_a_line_for_each_line_and_each_is_as_documented(model_servers: ModelServers) -> None:
    document = document_of(model_servers.prompted)
    examples = [each for each in examples_in(document) if each.path == "/encode/stream"]
    wrong = replace(examples[0], body='not JSON\n{"id": [1], "text": 5}\n')
    for example, field in [(each, "embedding") for each in examples] + [(wrong, "error")]:
        reply = example.send(model_servers.prompted.http)
        assert reply.text.count("\n") == example.body.count("\n") == 2
        assert all(field in json.loads(line) for line in reply.text.splitlines())
        check_content(document, reply, example.operation["responses"]["200"]["content"])


def test_the_key_can_be_entered_if_there_is_one(model_servers: ModelServers) -> None:
    document = document_of(model_servers.prompted)
    assert document["components"]["securitySchemes"].keys() == {"Bearer", "X-API-Key"}
    assert document["security"] == [{"Bearer": []}, {"X-API-Key": []}]
    url = model_servers.prompted.running.url
    with httpx.Client(base_url=url, timeout=HANG_S) as no_key:
        for example in examples_in(document):
            is_public = example.operation.get("security") == []
            assert is_public == (example.path in PUBLIC)
            assert example.send(no_key).status_code == (200 if is_public else 401), example.path
    for headers in ({"Authorization": "Bearer one"}, {"X-API-Key": "one"}):
        assert httpx.get(f"{url}/info", headers=headers, timeout=HANG_S).status_code == 200
    without = document_of(model_servers.reranker)
    assert "security" not in without
    assert "securitySchemes" not in without["components"]


def test_every_section_says_whose_dialect_it_is(model_servers: ModelServers) -> None:
    document = document_of(model_servers.prompted)
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    used = {tag for each in operations for tag in each["tags"]}
    assert {tag["name"] for tag in document["tags"]} == used
    for tag in document["tags"]:
        assert len(tag["description"]) > 40
        assert tag["description"].endswith(".")
