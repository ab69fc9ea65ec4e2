"""Vectors in every container and number format, compressed bodies, and the response headers."""

from __future__ import annotations

import base64
import gzip
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from bert_serving.server.gateway.output import convert

from tests.support.model_servers import ModelServers
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

TEXTS = ["hello world", "a", "the quick brown fox"]
LONG = "word " * 600
DTYPES = ["float32", "float16", "int8", "uint8", "binary", "ubinary"]
ACCEPT = {"raw": "application/octet-stream", "npy": "application/x-npy", "float": "application/json"}
ROUTES: dict[str, dict[str, Any]] = {
    "/embed": {"inputs": TEXTS},
    "/v1/embeddings": {"input": TEXTS},
    "/encode": {"id": 1, "texts": TEXTS},
}


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture(scope="module")
def rows(http: httpx.Client) -> np.ndarray:
    reply = http.post("/embed", json={"inputs": TEXTS, "encoding_format": "npy"})
    loaded: np.ndarray = np.load(io.BytesIO(reply.content))
    return loaded


def vectors_of(reply: httpx.Response, container: str, dtype: str) -> np.ndarray:
    """Return the vectors in a response, read as a caller reads them."""
    assert reply.status_code == 200, reply.text
    number = np.dtype(np.int8 if dtype == "binary" else np.uint8 if dtype == "ubinary" else dtype)
    if container == "npy":
        assert reply.headers["content-type"] == "application/x-npy"
        loaded: np.ndarray = np.load(io.BytesIO(reply.content), allow_pickle=False)
        assert loaded.dtype == number
        return loaded
    if container == "raw":
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-dtype"] == number.name
        shape = tuple(map(int, reply.headers["x-shape"].split(",")))
        return np.frombuffer(reply.content, number.newbyteorder("<")).reshape(shape)
    body = reply.json()
    if isinstance(body, dict):
        body = body["result"] if "result" in body else [item["embedding"] for item in body["data"]]
    if container == "base64":
        return np.stack([np.frombuffer(base64.b64decode(text), number.newbyteorder("<")) for text in body])
    kinds = {type(value) for row in body for value in row}
    assert kinds == ({float} if "float" in dtype else {int})
    return np.array(body, number)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_container_holds_the_same_numbers(
    http: httpx.Client, rows: np.ndarray, path: str, dtype: str
) -> None:
    expected = convert(rows, dtype)  # type: ignore[arg-type]
    ways = [("field", name) for name in ("float", "base64", "raw", "npy")] + [("accept", name) for name in ACCEPT]
    for way, container in ways:
        body = {**ROUTES[path], "output_dtype": dtype}
        body |= {"encoding_format": container} if way == "field" else {}
        headers = {"Accept": ACCEPT[container]} if way == "accept" else {}
        found = vectors_of(http.post(path, json=body, headers=headers), container, dtype)
        assert found.shape == expected.shape
        # The texts are computed again for each response, in other batches, so the last digit may differ.
        limit = 1e-2 if "float" in dtype else 2
        if "binary" in dtype:
            found, expected_bits = (np.unpackbits(x.view(np.uint8), axis=1) for x in (found, expected))
            assert (found != expected_bits).mean() < 0.02
        else:
            assert np.abs(found.astype(float) - expected.astype(float)).max() <= limit


def test_the_field_takes_precedence_over_the_accept_header(http: httpx.Client) -> None:
    headers = {"Accept": "application/octet-stream"}
    reply = http.post("/embed", json={"inputs": "a", "encoding_format": "float"}, headers=headers)
    assert reply.headers["content-type"] == "application/json"


def test_token_vectors_have_every_form_too(http: httpx.Client) -> None:
    tokens = {"pooling_strategy": "NONE", "pooling_layer": -1}
    padded = http.post("/encode", json={"id": 1, "texts": TEXTS, "options": tokens, "encoding_format": "npy"})
    array = np.load(io.BytesIO(padded.content))
    assert array.shape == (3, 6, 384)
    body = {"id": 1, "texts": TEXTS, "options": {**tokens, "ragged": True}}
    plain = http.post("/encode", json=body).json()["result"]
    assert [len(of_text) for of_text in plain] == [4, 3, 6]
    for each in http.post("/encode", json={**body, "encoding_format": "base64"}).json()["result"]:
        assert all(len(base64.b64decode(text)) == 384 * 4 for text in each)
    assert np.abs(np.array(plain[2]) - array[2]).max() < 0.05
    bits = http.post("/encode", json={**body, "output_dtype": "ubinary"}).json()["result"]
    assert [np.shape(of_text) for of_text in bits] == [(4, 48), (3, 48), (6, 48)]


# -- compressed bodies ---------------------------------------------------------------------------------


def test_bodies_may_be_compressed_in_both_directions(http: httpx.Client) -> None:
    texts = [f"one {i}" for i in range(30)]
    body = gzip.compress(json.dumps({"inputs": texts}).encode())
    packing = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    packed = http.post("/embed", content=body, headers=packing)
    assert packed.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in packed.headers["vary"]
    plain = http.post("/embed", json={"inputs": texts}, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert packed.num_bytes_downloaded < 0.7 * len(plain.content)
    assert np.shape(packed.json()) == np.shape(plain.json()) == (30, 384)
    small = http.post("/embed", json={"inputs": "a"}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


# -- headers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*ROUTES, "/embed_all", "/v2/embed", "/api/embed", "/similarity"])
def test_headers_have_the_times_the_tokens_and_the_texts_that_were_cut(http: httpx.Client, path: str) -> None:
    texts = ["short", LONG, "b", LONG]
    fields = {"/v1/embeddings": "input", "/encode": "texts", "/v2/embed": "texts", "/api/embed": "input"}
    body: dict[str, Any] = {"id": 1, fields.get(path, "inputs"): texts}
    if path == "/similarity":
        body = {"inputs": {"source_sentence": texts[0], "sentences": texts[1:]}}
    headers = http.post(path, json=body).headers
    found = {name.removeprefix("x-"): value for name, value in headers.items() if name.startswith("x-")}
    indices = "0,2" if path == "/similarity" else "1,3"  # of the sentences, without the source sentence
    assert (found["truncated-count"], found["truncated"]) == ("2", indices)
    assert found["compute-characters"] == str(sum(map(len, texts)))
    assert found["compute-tokens"] == str(3 + 256 + 3 + 256)
    names = ("total-time", "compute-time", "tokenization-time", "queue-time", "inference-time")
    total, compute, tokenize, queue, inference = (int(found[name]) for name in names)
    assert total >= inference > 0
    assert abs(compute - tokenize - inference) <= 1
    assert min(tokenize, queue) >= 0
    whole = http.post("/embed", json={"inputs": "short"}).headers
    assert "x-truncated" not in whole
    assert "x-truncated-count" not in whole


def test_rankings_and_labels_have_these_headers_too(model_servers: ModelServers) -> None:
    for http, path, body in (
        (model_servers.reranker.http, "/rerank", {"query": "fox", "texts": ["a", LONG]}),
        (model_servers.reranker.http, "/v2/rerank", {"query": "fox", "documents": ["a", LONG]}),
        (model_servers.classifier.http, "/predict", {"inputs": [["a"], [LONG]]}),
        (model_servers.classifier.http, "/classify", {"input": ["a", LONG]}),
        (model_servers.sparse.http, "/embed_sparse", {"inputs": ["a", LONG]}),
    ):
        reply = http.post(path, json=body)
        assert (reply.status_code, reply.headers["x-truncated"]) == (200, "1")
        assert int(reply.headers["x-total-time"]) >= 0


def test_a_request_keeps_its_id_and_gets_one_if_it_has_none(http: httpx.Client) -> None:
    for path in ("/live", "/nope", "/metrics"):
        assert http.get(path, headers={"X-Request-Id": "mine/1 ok"}).headers["x-request-id"] == "mine/1 ok"
    made = [http.post("/embed", json={"inputs": ""}).headers["x-request-id"] for _ in range(3)]
    assert len(set(made)) == 3
    assert all(len(bytes.fromhex(each)) == 16 for each in made)
    for bad in ("x" * 129, "\xe9", "a\tb"):
        answer = http.get("/live", headers={"X-Request-Id": bad.encode("latin-1")}).headers["x-request-id"]  # type: ignore[dict-item]
        assert len(bytes.fromhex(answer)) == 16


# -- pages of other origins ----------------------------------------------------------------------------


def test_a_page_may_send_its_key_and_read_the_headers(http: httpx.Client, model_servers: ModelServers) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-api-key"}
    for client, origin, allowed in (
        (http, "http://localhost:3000", "http://localhost:3000"),
        (model_servers.prompted.http, "https://a.org", "https://a.org"),
    ):
        for path in ("/embed", "/v1/embeddings", "/encode/stream", "/v2/rerank"):
            preflight = client.options(path, headers={"Origin": origin, **asked})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == allowed
            permitted = preflight.headers["access-control-allow-headers"].lower()
            assert {"authorization", "x-api-key"} <= set(permitted.replace(" ", "").split(","))
            assert "POST" in preflight.headers["access-control-allow-methods"]
        reply = client.post("/embed", json={"inputs": "a"}, headers={"Origin": origin})
        assert reply.headers["access-control-allow-origin"] == allowed
        assert reply.headers["access-control-expose-headers"] == "*"
    refused_origin = model_servers.prompted.http.options("/embed", headers={"Origin": "https://b.org", **asked})
    assert "access-control-allow-origin" not in refused_origin.headers
    # A web page can also read an error, for example after a request without a key.
    refused = httpx.post(
        f"{model_servers.prompted.running.url}/embed", json={}, headers={"Origin": "https://a.org"}, timeout=HANG_S
    )
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a.org")


def test_the_documentation_loads_nothing_from_other_hosts(http: httpx.Client) -> None:
    page = http.get("/docs").text
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert len(links) >= 2
    for link in links:
        assert link.startswith("/"), link
        assert http.get(link).status_code == 200
    assert "https://" not in page
    schema = http.get("/openapi.json").json()
    operations = [op["operationId"] for ops in schema["paths"].values() for op in ops.values()]
    assert len(set(operations)) == len(operations)
    assert {"/v1/embeddings", "/embed", "/rerank", "/v2/embed", "/api/embed", "/encode/stream"} <= set(
        schema["paths"]
    )
    assert not list(itertools.filterfalse(_resolves(schema), _references(schema)))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _resolves(schema: dict[str, Any]) -> Any:
    def found(reference: str) -> bool:
        at: Any = schema
        for name in reference.removeprefix("#/").split("/"):
            at = at.get(name) if isinstance(at, dict) else None
        return at is not None

    return found
