"""Bodies of Jina, Voyage, Mistral and Vertex AI, where they differ from those of OpenAI, Cohere and TEI."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.model_servers import PROMPTS, ModelServers

TEXTS = ["First do it", "then do it right"]


@pytest.fixture
def http(model_servers: ModelServers) -> httpx.Client:
    return model_servers.prompted.http


def embed(http: httpx.Client, **fields: Any) -> Any:
    reply = http.post("/v1/embeddings", json={"input": TEXTS, "model": "any", **fields})
    assert reply.status_code == 200, reply.text
    return np.array([each["embedding"] for each in reply.json()["data"]])


def raw_vectors(http: httpx.Client, texts: list[str], **options: Any) -> Any:
    body = {"id": 1, "texts": texts, "options": {"normalize": True, **options}}
    return np.array(http.post("/encode", json=body).json()["result"])


def test_jina_and_voyage_say_what_the_texts_are_for(http: httpx.Client) -> None:
    queries = raw_vectors(http, [PROMPTS["query"] + text for text in TEXTS])
    passages = raw_vectors(http, [PROMPTS["passage"] + text for text in TEXTS])
    for fields in ({"task": "retrieval.query"}, {"input_type": "query"}):
        np.testing.assert_allclose(embed(http, **fields), queries, atol=1e-5)
    for fields in ({"task": "retrieval.passage"}, {"input_type": "document"}, {"task": "passage"}):
        np.testing.assert_allclose(embed(http, **fields), passages, atol=1e-5)
    without: list[dict[str, Any]] = [{"task": "text-matching"}, {"input_type": None}, {}]
    for fields in without:
        np.testing.assert_allclose(embed(http, **fields), raw_vectors(http, TEXTS), atol=1e-5)


def test_jina_inputs_are_objects_and_its_types_have_another_name(http: httpx.Client) -> None:
    plain = embed(http)
    np.testing.assert_allclose(embed(http, input=[{"text": text} for text in TEXTS]), plain, atol=1e-6)
    np.testing.assert_allclose(embed(http, embedding_type="float"), plain, atol=1e-6)
    assert embed(http, embedding_type="ubinary").shape == (2, 48)
    assert embed(http, embedding_type=["int8"]).max() == 127
    reply = http.post("/v1/embeddings", json={"input": TEXTS, "embedding_type": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(reply["data"][1]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, plain[1], atol=1e-6)
    reply = http.post("/v1/embeddings", json={"input": [{"image": "x"}, {"text": "a"}]})
    assert (reply.status_code, "input[0]" in reply.json()["error"]["message"]) == (422, True)


def test_jina_late_chunking_reads_the_inputs_as_one_text(http: httpx.Client) -> None:
    whole = " ".join(TEXTS)
    spans = [[[0, len(TEXTS[0])], [len(TEXTS[0]) + 1, len(whole)]]]
    options = {"normalize": True, "ragged": True}
    expected = http.post("/encode", json={"id": 1, "texts": [whole], "spans": spans, "options": options}).json()
    np.testing.assert_allclose(embed(http, late_chunking=True), expected["result"][0], atol=1e-5)
    assert np.abs(embed(http, late_chunking=True) - embed(http)).max() > 0.01
    reply = http.post("/v1/embeddings", json={"input": ["a", [1000]], "late_chunking": True})
    assert (reply.status_code, reply.json()["error"]["message"]) == (
        422,
        "input[1] must be a string with late_chunking",
    )
    for texts, message in (
        (["a", ""], "input[1] is an empty string"),
        (["a", " "], "input[1] has no token"),
        (["a"] * 1025, "input must have 1 to 1024 texts with late_chunking, got 1025"),
        (["word " * 140_000, "a" * 9], "the whole of input: "),
    ):
        reply = http.post("/v1/embeddings", json={"input": texts, "late_chunking": True})
        assert (reply.status_code, reply.json()["error"]["message"][: len(message)]) == (422, message)


def test_jina_late_chunking_leaves_out_what_cannot_be_encoded(http: httpx.Client) -> None:
    body = {"input": [TEXTS[0], "", " ", 5, TEXTS[1]], "late_chunking": True, "on_error": "null"}
    reply = http.post("/v1/embeddings", json=body).json()
    found = [each["embedding"] for each in reply["data"]]
    np.testing.assert_allclose([found[0], found[4]], embed(http, late_chunking=True), atol=1e-5)
    assert found[1:4] == [None] * 3
    assert [error["message"] for error in reply["errors"]] == [
        "is an empty string",
        "has no token",
        "must be a string, got int",
    ]


def test_normalized_and_truncation_are_obeyed(http: httpx.Client) -> None:
    unit = embed(http, dimensions=16)
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1, abs=1e-5)
    expected = raw_vectors(http, TEXTS, dimensions=16, normalize=False)
    np.testing.assert_allclose(embed(http, output_dimension=16, normalized=False), expected, atol=1e-5)
    for fields in ({"truncation": False}, {"truncate": False}):
        reply = http.post("/v1/embeddings", json={"input": ["word " * 600], **fields})
        assert (reply.status_code, "at most" in reply.json()["error"]["message"]) == (422, True)


def test_mistral_and_voyage_ask_for_number_formats(http: httpx.Client) -> None:
    np.testing.assert_allclose(embed(http, output_dtype="float", encoding_format="float"), embed(http), atol=1e-6)
    assert embed(http, output_dtype="int8", output_dimension=8).shape == (2, 8)


def test_voyage_and_jina_rank(model_servers: ModelServers) -> None:
    http = model_servers.reranker.http
    body = {"query": "one", "documents": ["two", "three"], "model": "any", "return_documents": True}
    jina = http.post("/v1/rerank", json={**body, "top_n": 1}).json()
    assert len(jina["results"]) == 1
    assert jina["usage"]["total_tokens"] > 0
    voyage = http.post("/v1/rerank", json={**body, "top_k": 1, "truncation": True}).json()
    assert voyage["data"] == [{**jina["results"][0], "document": jina["results"][0]["document"]["text"]}]
    assert (voyage["object"], voyage["usage"]) == ("list", jina["usage"])


def test_vertex_ai_has_contents(http: httpx.Client) -> None:
    body = {
        "instances": [{"content": text, "task_type": "RETRIEVAL_QUERY", "title": "x"} for text in TEXTS],
        "parameters": {"autoTruncate": True, "outputDimensionality": 8},
    }
    expected = raw_vectors(http, [PROMPTS["query"] + text for text in TEXTS], dimensions=8)
    for path in ("/predict", "/vertex"):
        predictions = http.post(path, json=body).json()["predictions"]
        found = [each["embeddings"] for each in predictions]
        np.testing.assert_allclose([each["values"] for each in found], expected, atol=1e-5)
        assert found[0]["statistics"]["truncated"] is False
        assert found[0]["statistics"]["token_count"] > 3
    long = {"instances": [{"content": "word " * 600}], "parameters": {"autoTruncate": False}}
    reply = http.post("/predict", json=long)
    assert (reply.status_code, reply.json()["error"].startswith("instances[0]: ")) == (422, True)
    nulls = {"instances": [{"content": "a"}, {"content": ""}], "on_error": "null"}
    assert [each is None for each in http.post("/predict", json=nulls).json()["predictions"]] == [False, True]


def test_tei_puts_its_bodies_into_instances(model_servers: ModelServers) -> None:
    http = model_servers.prompted.http
    bodies = [{"inputs": TEXTS}, {"inputs": "a", "normalize": False}]
    alone = [http.post("/embed", json=body).json() for body in bodies]
    found = http.post("/vertex", json={"instances": bodies}).json()["predictions"]
    for mine, theirs in zip(found, alone, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    reranker = model_servers.reranker.http
    body = {"query": "one", "texts": ["two", "three"]}
    ranking = reranker.post("/vertex", json={"instances": [body]}).json()["predictions"]
    assert ranking == [reranker.post("/rerank", json=body).json()]
    nulls = [{"inputs": ["a", "", "b"]}, {"inputs": TEXTS}, {"inputs": ""}]
    reply = http.post("/vertex", json={"instances": nulls, "on_error": "null"})
    found = reply.json()["predictions"]
    assert [[vector is None for vector in each] for each in found] == [
        [False, True, False],
        [False, False],
        [True],
    ]
    assert [error["message"] for error in reply.json()["errors"]] == [
        "instances[0], text 1: is an empty string",
        "instances[2], text 0: is an empty string",
    ]
    reply = http.post("/vertex", json={"instances": [{"inputs": "a"}] * 40 + [{"inputs": ["a", ""]}]})
    assert reply.json()["error"] == "instances[40]: inputs[1] is an empty string"
    for accept in ("application/x-npy", "application/octet-stream"):
        binary = http.post("/vertex", json={"instances": [{"inputs": "a"}]}, headers={"Accept": accept})
        assert (binary.status_code, "raw and npy are not available" in binary.text) == (422, True)
    assert http.post("/vertex", json={"instances": [{"inputs": "a"}] * 1025}).status_code == 413
    bodies_of_another_form: list[Any] = [[{"inputs": 5}], 5, [{}], None]
    for wrong in bodies_of_another_form:
        assert http.post("/vertex", json={"instances": wrong}).status_code == 422, wrong


def test_an_empty_list_is_400_as_in_tei(model_servers: ModelServers) -> None:
    for served, path, body in (
        (model_servers.prompted, "/embed", {"inputs": []}),
        (model_servers.prompted, "/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
        (model_servers.prompted, "/vertex", {"instances": []}),
        (model_servers.classifier, "/predict", {"inputs": []}),
        (model_servers.reranker, "/rerank", {"query": "a", "texts": []}),
    ):
        reply = served.http.post(path, json=body)
        assert (reply.status_code, reply.json()["error_type"]) == (400, "Empty"), path


def test_predict_takes_texts_and_pairs_in_one_batch(model_servers: ModelServers) -> None:
    http = model_servers.classifier.http
    found = http.post("/predict", json={"inputs": [["one"], ["one", "two"]]}).json()
    alone = [http.post("/predict", json={"inputs": [each]}).json()[0] for each in (["one"], ["one", "two"])]
    for mine, theirs in zip(found, alone, strict=True):
        assert [each["label"] for each in mine] == [each["label"] for each in theirs]
        assert [each["score"] for each in mine] == pytest.approx([each["score"] for each in theirs], abs=1e-5)


def test_strings_and_ids_in_one_list(http: httpx.Client) -> None:
    ids = [token["id"] for token in http.post("/tokenize", json={"inputs": TEXTS[0]}).json()[0]][1:-1]
    reply = http.post("/embed", json={"inputs": [ids, TEXTS[1], TEXTS[0]]})
    assert reply.headers["x-compute-type"] == "cpu"
    rows = np.array(reply.json())
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-5)


def test_info_tells_a_batch_size_that_finishes_in_time(http: httpx.Client) -> None:
    info = http.get("/info").json()
    status = http.get("/status/server").json()
    rate = sum(worker["tokens_per_s"] for worker in status["workers"])
    assert info["max_client_batch_size"] == int(rate * 30) // info["max_input_length"]
