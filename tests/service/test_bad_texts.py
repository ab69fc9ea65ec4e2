"""One bad text does not cost the other texts of its request their vectors; and characters that are no text."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.model_servers import ModelServers
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S

LONG = "word " * 600
BAD: list[Any] = ["first", "", "third", 5, [99999], "last"]
REASONS = ["is an empty string", "must be a string, got int", "token id 99999 is not in this model's vocabulary"]
GOOD = [0, 2, 5]


def vectors_of(path: str, body: dict[str, Any]) -> list[Any]:
    """Return the vectors, or null, in the response of an embedding route."""
    if path in ("/v1/embeddings", "/embeddings"):
        return [each["embedding"] for each in body["data"]]
    if path == "/v2/embed":
        return list(body["embeddings"]["float"])
    return list(body["embeddings"] if path in ("/v1/embed", "/api/embed") else body["result"])


@pytest.fixture
def http(model_servers: ModelServers) -> httpx.Client:
    return model_servers.prompted.http


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *(("/v1/embeddings", "input"), ("/embeddings", "input"), ("/api/embed", "input")),
        *(("/v1/embed", "texts"), ("/v2/embed", "texts")),
    ],
)
@pytest.mark.parametrize("by_header", [False, True])
def test_a_bad_text_is_null_with_its_reason_beside(
    http: httpx.Client, path: str, field: str, by_header: bool
) -> None:
    alone = http.post(path, json={field: [BAD[i] for i in GOOD]}).json()
    if by_header:
        reply = http.post(path, json={field: BAD}, headers={"X-On-Error": "null"})
    else:
        reply = http.post(path, json={field: BAD, "on_error": "null"})
    assert reply.status_code == 200
    found = vectors_of(path, reply.json())
    assert [i for i, vector in enumerate(found) if vector is not None] == GOOD
    np.testing.assert_allclose([found[i] for i in GOOD], vectors_of(path, alone), atol=1e-5)
    errors = reply.json()["errors"]
    assert [error["index"] for error in errors] == [1, 3, 4]
    for error, reason in zip(errors, REASONS, strict=True):
        assert error["code"] == "invalid_request"
        assert error["message"].removeprefix(f"{field}[4]: ").startswith(reason)
    assert reply.headers["x-error-count"] == "3"
    assert json.loads(reply.headers["x-errors"])[0] == errors[0]
    assert "errors" not in alone


def test_lists_without_an_object_around_them_have_the_reasons_in_a_header(http: httpx.Client) -> None:
    for path in ("/embed", "/embed_all", "/"):
        reply = http.post(path, json={"inputs": BAD, "on_error": "null"})
        assert [i for i, each in enumerate(reply.json()) if each is not None] == GOOD, path
        assert [error["index"] for error in json.loads(reply.headers["x-errors"])] == [1, 3, 4]
    assert http.post("/embed", json={"inputs": BAD, "on_error": "error"}).status_code == 422
    assert http.post("/embed", json={"inputs": BAD}).status_code == 422


def test_many_reasons_are_counted_and_the_first_are_listed(http: httpx.Client) -> None:
    reply = http.post("/embed", json={"inputs": ["é" * 2 + LONG] * 300, "truncate": False, "on_error": "null"})
    assert reply.json() == [None] * 300
    assert reply.headers["x-error-count"] == "300"
    assert 1 < len(json.loads(reply.headers["x-errors"])) < 300
    assert "at most 254 tokens" in json.loads(reply.headers["x-errors"])[0]["message"]


def test_binary_formats_have_nan_and_numbers_have_zeros_in_place_of_null(http: httpx.Client) -> None:
    body = {"inputs": ["a", "", "b"], "on_error": "null"}
    rows = np.load(io.BytesIO(http.post("/embed", json=body, headers={"Accept": "application/x-npy"}).content))
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]
    reply = http.post("/embed", json={**body, "output_dtype": "int8", "encoding_format": "npy"})
    whole = np.load(io.BytesIO(reply.content))
    assert (whole.dtype, whole[1].any(), whole[0].any()) == (np.int8, False, True)


def test_encode_takes_it_as_an_option_or_a_header(http: httpx.Client) -> None:
    texts = ["a", "", LONG]
    options = {"truncate": "error", "on_error": "null", "show_tokens": True, "show_usage": True}
    reply = http.post("/encode", json={"id": 1, "texts": texts, "options": options}).json()
    assert [vector is None for vector in reply["result"]] == [False, True, True]
    assert [error["index"] for error in reply["errors"]] == [1, 2]
    assert reply["tokens"] == [["[CLS]", "a", "[SEP]"], [], []]
    assert reply["usage"]["num_tokens"] == [3, 0, 0]
    reply = http.post("/encode", json={"id": 1, "texts": texts[:2]}, headers={"X-On-Error": "null"}).json()
    assert reply["result"][1] is None
    spans = {"texts": ["ab cd", "ab"], "spans": [[[0, 2], [3, 5]], [[0, 99]]]}
    reply = http.post("/encode", json={"id": 1, **spans, "options": {"on_error": "null", "ragged": True}}).json()
    assert (len(reply["result"][0]), reply["result"][1]) == (2, None)
    tokens = [["a", "b"], ["no such token"], []]
    reply = http.post("/encode", json={"id": 1, "texts": tokens, "options": {"on_error": "null"}}).json()
    assert reply["result"][2] is None


def test_a_wrong_value_of_the_header_or_the_field_is_an_error(http: httpx.Client) -> None:
    reply = http.post("/embed", json={"inputs": "a"}, headers={"X-On-Error": "skip"})
    assert (reply.status_code, reply.json()["error"]) == (400, "X-On-Error must be error or null, got 'skip'")
    assert http.post("/embed", json={"inputs": "a", "on_error": "skip"}).status_code == 422
    assert http.post("/embed", json={"inputs": "a", "on_error": None}).status_code == 200


def test_rankings_and_labels(model_servers: ModelServers) -> None:
    http = model_servers.reranker.http
    body = {"query": "one", "documents": ["two", 5, "", "three"], "on_error": "null", "return_documents": True}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        reply = http.post(path, json=body).json()
        assert [error["index"] for error in reply["errors"]] == [1]
        results = reply["results"]
        assert (results[-1]["index"], results[-1]["relevance_score"]) == (1, None)
        assert {each["index"] for each in results} == {0, 1, 2, 3}
    assert [each["score"] for each in http.post("/rerank", json={"query": "a", "texts": [""]}).json()] != [None]
    classifier = model_servers.classifier.http
    found = classifier.post(
        "/predict", json={"inputs": [["a"], ["b", None], ["c", "d"]], "on_error": "null"}
    ).json()
    assert [each is None for each in found] == [False, True, False]
    labels = classifier.post("/classify", json={"input": ["a", 5], "on_error": "null"}).json()
    assert labels["data"][1] is None
    sparse = model_servers.sparse.http.post("/embed_sparse", json={"inputs": ["a", 5], "on_error": "null"})
    assert (sparse.status_code, sparse.json()[1]) == (200, None)


def test_characters_that_are_no_text_are_left_out_and_counted(http: httpx.Client) -> None:
    clean = http.post("/embed", json={"inputs": ["a text", "another"]})
    assert "x-dropped-characters" not in clean.headers
    dirty = rb'{"inputs": ["a\u0000 te\ud800xt", "\udfffanother"]}'
    reply = http.post("/embed", content=dirty)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-dropped-characters"] == "3"
    np.testing.assert_allclose(reply.json(), clean.json(), atol=1e-6)
    pair = http.post("/encode", content=rb'{"id": 1, "texts": ["\ud83d\ude00", "a\ud800"]}')
    assert pair.headers["x-dropped-characters"] == "1"  # the first text is an emoji
    tokens = http.post("/encode", json={"id": 1, "texts": [["a\0", "b"]]})
    assert tokens.headers["x-dropped-characters"] == "1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/embed", rb'{"texts": ["a\ud800"]}'),
        ("/v1/embed", rb'{"texts": ["a\ud800"]}'),
        ("/api/embed", rb'{"model": "\ud800", "input": "a"}'),
        ("/tokenize", rb'{"inputs": "a\ud800"}'),
        ("/v1/embeddings", rb'{"input": "a", "\ud800": 1, "user": {"b": ["\udfff"]}}'),
    ],
)
def test_a_lone_surrogate_anywhere_in_a_body_is_harmless(http: httpx.Client, path: str, body: bytes) -> None:
    reply = http.post(path, content=body)
    assert (reply.status_code, reply.json() is not None) == (200, True), reply.text


def test_a_lone_surrogate_in_an_error_message_is_harmless(model_servers: ModelServers) -> None:
    long = b'{"\\ud800": [%s]}' % b",".join([b"1"] * 262_146)
    reply = model_servers.prompted.http.post("/embed", content=long)
    assert (reply.status_code, reply.json()["error_type"]) == (413, "Validation")
    reply = model_servers.prompted.http.post(
        "/encode", content=rb'{"id": 1, "texts": ["a"], "options": {"\ud800": 1}}'
    )
    assert (reply.status_code, reply.json()["type"]) == (400, "InvalidRequest")
    body = rb'{"query": "a", "documents": ["b\ud800"], "return_documents": true}'
    assert model_servers.reranker.http.post("/rerank", content=body).status_code == 200


def test_a_bad_query_is_an_error_of_the_request(model_servers: ModelServers) -> None:
    long = {"query": "a" * ((4 << 20) + 1), "documents": ["b"], "on_error": "null"}
    reply = model_servers.reranker.http.post("/rerank", json=long)
    assert (reply.status_code, reply.json()["error"]) == (
        413,
        "query may have at most 4194304 characters, got 4194305",
    )


def test_characters_of_a_query_are_counted_once(model_servers: ModelServers) -> None:
    body = {"query": "a\0", "documents": ["b", "c", "d\0"]}
    assert model_servers.reranker.http.post("/rerank", json=body).headers["x-dropped-characters"] == "2"


def test_a_request_without_a_good_text_has_only_nulls(http: httpx.Client) -> None:
    for path in ("/embed", "/embed_all"):
        reply = http.post(path, json={"inputs": ["", LONG], "truncate": False, "on_error": "null"})
        assert reply.json() == [None, None]
        assert reply.headers["x-compute-tokens"] == "0"


def test_a_body_says_more_than_a_header(http: httpx.Client) -> None:
    header = {"X-On-Error": "null"}
    assert http.post("/embed", json={"inputs": "", "on_error": "error"}, headers=header).status_code == 422
    body = {"id": 1, "texts": [""], "options": {"on_error": "error"}}
    assert http.post("/encode", json=body, headers=header).status_code == 400


def test_a_large_body_with_lone_surrogates_is_read_too(http: httpx.Client) -> None:
    body = rb'{"id": 1, "inputs": ["a\ud800"], "texts": ["a\ud800"], "more": "%s"}' % (b"x" * (900 << 10))
    for path in ("/embed", "/encode"):
        assert http.post(path, content=body).status_code == 200


def test_the_metrics_count_characters_and_nulls(server: RunningServer) -> None:
    def counts() -> list[float]:
        text = httpx.get(f"{server.url}/metrics", timeout=HANG_S).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("bert_serving_http_")]
        found = {name: float(value) for name, value in lines if "{" not in name}
        return [found[f"bert_serving_http_{kind}_total"] for kind in ("dropped_characters", "null_texts")]

    before = counts()
    httpx.post(f"{server.url}/embed", json={"inputs": ["a\0\0", ""], "on_error": "null"}, timeout=HANG_S)
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [2, 1]


def test_an_empty_document_can_be_ranked_and_an_empty_text_classified(model_servers: ModelServers) -> None:
    for served, path, body in (
        (model_servers.reranker, "/rerank", {"query": "one", "texts": ["", "two"]}),
        (model_servers.reranker, "/v2/rerank", {"query": "", "documents": ["two"]}),
        (model_servers.classifier, "/predict", {"inputs": ""}),
        (model_servers.classifier, "/classify", {"input": ["", "a"]}),
    ):
        assert served.http.post(path, json=body).status_code == 200, path
