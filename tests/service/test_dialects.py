"""Every route of every dialect replies in the right format, with the values of sentence-transformers."""

from __future__ import annotations

import base64
import re
from typing import Any

import httpx
import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from transformers import AutoTokenizer

from tests.support.model_servers import LABELS, PROMPTS, ModelServers

TEXTS = ["hello world", "a", "the quick brown fox jumps over the lazy dog", "naïve café 東京"]
LONG = "word " * 600
UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def reference(model_servers: ModelServers) -> SentenceTransformer:
    return SentenceTransformer(str(model_servers.prompted.folder), device="cpu")


@pytest.fixture(scope="module")
def http(model_servers: ModelServers) -> httpx.Client:
    return model_servers.prompted.http


def ask(http: httpx.Client, path: str, body: Any) -> Any:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    return reply.json()


def assert_close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5


# -- OpenAI --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openais_embeddings(http: httpx.Client, reference: SentenceTransformer, path: str) -> None:
    body = ask(http, path, {"input": TEXTS, "model": "any", "user": "me", "encoding_format": "float", "foo": 1})
    assert body.keys() == {"object", "data", "model", "usage", "id", "created"}
    assert (body["object"], body["model"]) == ("list", "prompted")
    assert [item.keys() for item in body["data"]] == [{"object", "embedding", "index"}] * 4
    assert [(item["object"], item["index"]) for item in body["data"]] == [("embedding", i) for i in range(4)]
    assert_close([item["embedding"] for item in body["data"]], reference.encode(TEXTS))
    num_tokens = sum(len(ids) for ids in reference.tokenizer(TEXTS)["input_ids"])
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_openais_input_is_a_string_or_token_ids_too(http: httpx.Client, reference: SentenceTransformer) -> None:
    ids = reference.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    expected = reference.encode(TEXTS)
    for given, rows in ((TEXTS[2], expected[2:3]), (ids, expected), (ids[2], expected[2:3])):
        body = ask(http, "/v1/embeddings", {"input": given})
        assert_close([item["embedding"] for item in body["data"]], rows)


def test_openais_base64_is_float32(http: httpx.Client, reference: SentenceTransformer) -> None:
    body = ask(http, "/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in body["data"]]
    assert_close(rows, reference.encode(TEXTS))


def test_openais_dimensions_are_of_unit_length(http: httpx.Client, reference: SentenceTransformer) -> None:
    body = ask(http, "/v1/embeddings", {"input": TEXTS, "dimensions": 64})
    expected = reference.encode(TEXTS, truncate_dim=64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert_close([item["embedding"] for item in body["data"]], expected)
    # Infinity's client sends 0 if its caller gives no dimensions.
    assert len(ask(http, "/v1/embeddings", {"input": "a", "dimensions": 0})["data"][0]["embedding"]) == 384


def test_openais_usage_counts_what_was_computed_and_tells_what_was_cut(http: httpx.Client) -> None:
    body = ask(http, "/v1/embeddings", {"input": ["a", LONG]})
    assert (body["usage"]["prompt_tokens"], body["truncated"]) == (3 + 256, [1])


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_openais_models(http: httpx.Client, path: str) -> None:
    body = http.get(path).json()
    (entry,) = body.pop("data")
    assert body == {"object": "list"}
    stats = entry.pop("stats")
    assert entry == {
        "id": "prompted",
        "object": "model",
        "created": 0,
        "owned_by": "infinity",
        "backend": "torch",
        "capabilities": ["embed"],
    }
    assert stats.keys() == {"queue_fraction", "queue_absolute", "results_pending", "batch_size"}


@pytest.mark.parametrize("path", ["/v1/models/", "/models/"])
@pytest.mark.parametrize("name", ["prompted", "any", "sentence-transformers/all-MiniLM-L6-v2"])
def test_openais_model_has_any_name(http: httpx.Client, path: str, name: str) -> None:
    (listed,) = http.get("/v1/models").json()["data"]
    entry = http.get(path + name).json()
    assert (entry.pop("id"), entry.keys()) == (name, listed.keys() - {"id"})


def test_azures_path(http: httpx.Client, reference: SentenceTransformer) -> None:
    path = "/openai/deployments/any/embeddings?api-version=2024-10-21"
    assert_close(
        [item["embedding"] for item in ask(http, path, {"input": TEXTS})["data"]], reference.encode(TEXTS)
    )


def test_null_and_unknown_fields_are_ignored(model_servers: ModelServers) -> None:
    embedding = ("encoding_format", "output_dtype", "dimensions", "normalize", "prompt_name", "spans", "options")
    cutting = ("truncate", "truncation_direction", "is_tokenized", "add_special_tokens", "skip_special_tokens")
    scoring = ("raw_scores", "return_text", "return_documents", "top_n", "parameters")
    others = ("model", "user", "id", "input_type", "embedding_types", "output_dimension")
    nulls = dict.fromkeys(embedding + cutting + scoring + others)
    embed, scores = model_servers.prompted.http, model_servers.classifier.http
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/embed", {"inputs": "a"}),
        ("/embed_all", {"inputs": "a"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/tokenize", {"inputs": "a"}),
        ("/decode", {"ids": [1000]}),
        ("/v2/embed", {"texts": ["a"]}),
        ("/api/embed", {"input": "a"}),
        ("/encode", {"texts": ["a"]}),
    ):
        assert ask(embed, path, {**nulls, "unknown": {"a": 1}, **body}) is not None
    assert ask(embed, "/", {"query": None, "texts": None, "inputs": "a"}) == ask(embed, "/embed", {"inputs": "a"})
    assert ask(scores, "/predict", {**nulls, "inputs": "a"}) == ask(scores, "/predict", {"inputs": "a"})
    assert ask(scores, "/classify", {**nulls, "input": "a"})["data"]
    assert ask(model_servers.sparse.http, "/embed_sparse", {**nulls, "inputs": "a"})
    ranked = ask(
        model_servers.reranker.http, "/rerank", {"documents": None, **nulls, "query": "a", "texts": ["b"]}
    )
    assert ranked == ask(model_servers.reranker.http, "/rerank", {"query": "a", "texts": ["b"]})
    assert ask(
        model_servers.reranker.http, "/v2/rerank", {**nulls, "texts": None, "query": "a", "documents": ["b"]}
    )


# -- TEI -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
def test_teis_embed(http: httpx.Client, reference: SentenceTransformer, path: str) -> None:
    assert_close(ask(http, path, {"inputs": TEXTS}), reference.encode(TEXTS))
    assert_close(ask(http, path, {"inputs": TEXTS[0]}), reference.encode(TEXTS[:1]))
    ids = reference.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert_close(ask(http, path, {"inputs": ids}), reference.encode(TEXTS))


def test_teis_embed_has_prompts_and_dimensions(http: httpx.Client, reference: SentenceTransformer) -> None:
    for name in PROMPTS:
        rows = ask(http, "/embed", {"inputs": TEXTS, "prompt_name": name})
        assert_close(rows, reference.encode(TEXTS, prompt_name=name))
    cut = reference.encode(TEXTS, truncate_dim=32)
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    assert_close(ask(http, "/embed", {"inputs": TEXTS, "dimensions": 32}), cut)


def test_teis_embed_without_normalize(http: httpx.Client, reference: SentenceTransformer) -> None:
    pooled: Any = reference.encode(TEXTS, output_value=None)
    expected = [item["token_embeddings"][item["attention_mask"].bool()].mean(0).numpy() for item in pooled]
    assert_close(ask(http, "/embed", {"inputs": TEXTS, "normalize": False}), expected)


@pytest.mark.parametrize("side", ["left", "Left", "right", "Right"])
def test_teis_embed_cuts_on_either_side(http: httpx.Client, reference: SentenceTransformer, side: str) -> None:
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrst" for b in range(20)]
    ids = reference.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    kept = ids[:254] if side.lower() == "right" else ids[-254:]
    found = ask(http, "/embed", {"inputs": [" ".join(words)], "truncation_direction": side})
    assert_close(found, ask(http, "/embed", {"inputs": [kept]}))
    assert found != ask(http, "/embed", {"inputs": [ids[100:354]]})


def test_teis_embed_all_has_the_special_tokens(http: httpx.Client, reference: SentenceTransformer) -> None:
    found = ask(http, "/embed_all", {"inputs": TEXTS})
    expected = reference.encode(TEXTS, output_value="token_embeddings")
    assert len(found) == 4
    for rows, tokens in zip(found, expected, strict=True):
        assert_close(rows, tokens.numpy())


def test_teis_embed_sparse(model_servers: ModelServers) -> None:
    expected = (
        SparseEncoder(str(model_servers.sparse.folder), device="cpu")
        .encode(TEXTS, convert_to_sparse_tensor=False)
        .numpy()
    )
    for path in ("/embed_sparse", "/"):
        found = ask(model_servers.sparse.http, path, {"inputs": TEXTS})
        assert {frozenset(term) for terms in found for term in terms} == {frozenset({"index", "value"})}
        dense = np.zeros_like(expected)
        for row, terms in zip(dense, found, strict=True):
            row[[term["index"] for term in terms]] = [term["value"] for term in terms]
        assert_close(dense, expected)
        assert sum(map(len, found)) == (expected > 0).sum()


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_teis_similarity(http: httpx.Client, reference: SentenceTransformer, path: str) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    ways: list[dict[str, object]] = [{}, {"parameters": {}}, {"parameters": None}]
    for parameters in ways:
        rows = reference.encode(TEXTS)
        assert_close(ask(http, path, {"inputs": inputs, **parameters}), rows @ rows[0])
    rows = reference.encode(TEXTS, prompt_name="query")
    found = ask(http, path, {"inputs": inputs, "parameters": {"prompt_name": "query", "truncate": False}})
    assert_close(found, rows @ rows[0])


def test_teis_predict(model_servers: ModelServers) -> None:
    http, cross_encoder = (
        model_servers.classifier.http,
        CrossEncoder(str(model_servers.classifier.folder), device="cpu"),
    )
    pairs = [(a, b) for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    expected = cross_encoder.predict(pairs, apply_softmax=True)
    assert np.ptp(expected, axis=0).max() > 0.01
    found = ask(http, "/predict", {"inputs": pairs})
    assert [[label["score"] for label in labels] for labels in found] == [
        sorted((label["score"] for label in labels), reverse=True) for labels in found
    ]
    in_order = [[{x["label"]: x["score"] for x in labels}[name] for name in LABELS] for labels in found]
    assert_close(in_order, expected)
    raw = ask(http, "/predict", {"inputs": pairs, "raw_scores": True})
    in_order = [[{x["label"]: x["score"] for x in labels}[name] for name in LABELS] for labels in raw]
    assert_close(in_order, cross_encoder.predict(pairs))
    # A single text or pair gets a single result, not a list of results.
    assert ask(http, "/predict", {"inputs": list(pairs[0])}) == ask(http, "/predict", {"inputs": [pairs[0]]})[0]
    alone = ask(http, "/predict", {"inputs": TEXTS[0]})
    assert [alone] == ask(http, "/predict", {"inputs": [[TEXTS[0]]]}) != [found[0]]
    assert ask(http, "/", {"inputs": TEXTS[0]}) == alone
    assert alone[0].keys() == {"score", "label"}


def test_teis_rerank(model_servers: ModelServers) -> None:
    http, cross_encoder = (
        model_servers.reranker.http,
        CrossEncoder(str(model_servers.reranker.folder), device="cpu"),
    )
    expected = cross_encoder.rank(TEXTS[2], TEXTS)
    assert expected[0]["score"] - expected[-1]["score"] > 0.01
    for path in ("/rerank", "/"):
        found = ask(http, path, {"query": TEXTS[2], "texts": TEXTS})
        assert [item["index"] for item in found] == [item["corpus_id"] for item in expected]
        assert_close([item["score"] for item in found], [item["score"] for item in expected])
        assert [item.keys() for item in found] == [{"index", "score"}] * 4
    body = {
        "query": TEXTS[2],
        "texts": TEXTS,
        "return_text": True,
        "raw_scores": True,
        "truncation_direction": "Right",
    }
    found = ask(http, "/rerank", {**body, "top_n": 2})
    assert [item["text"] for item in found] == [TEXTS[item["corpus_id"]] for item in expected[:2]]
    logits = np.array([item["score"] for item in found])
    assert_close(1 / (1 + np.exp(-logits)), [item["score"] for item in expected[:2]])


def test_teis_tokenize_and_decode(http: httpx.Client, model_servers: ModelServers) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_servers.prompted.folder)
    text = "Hello wörld 東京"
    (tokens,) = ask(http, "/tokenize", {"inputs": text})
    assert tokens[:3] == [
        {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None},
        {"id": 7592, "text": "Hello", "special": False, "start": 0, "stop": 5},
        {"id": 2088, "text": "wörld", "special": False, "start": 6, "stop": 11},
    ]
    texts = [text, LONG]
    found = ask(http, "/tokenize", {"inputs": texts})
    assert [[token["id"] for token in each] for each in found] == tokenizer(texts)["input_ids"]
    plain = ask(http, "/tokenize", {"inputs": text, "add_special_tokens": False})[0]
    assert plain == tokens[1:-1]
    prompted = ask(http, "/tokenize", {"inputs": text, "prompt_name": "query"})[0]
    assert [token["text"] for token in prompted[1:3]] == ["query", ":"]
    ids = [token["id"] for token in tokens]
    assert ask(http, "/decode", {"ids": ids}) == [tokenizer.decode(ids, skip_special_tokens=True)]
    whole = ask(http, "/decode", {"ids": [ids, [7592]], "skip_special_tokens": False})
    assert whole == ["[CLS] hello world 東 京 [SEP]", "hello"]


MEASURED = {"version", "parity", "model_sha", "max_client_batch_size"}


def test_teis_info(model_servers: ModelServers) -> None:
    http = model_servers.prompted.http
    info = http.get("/info").json()
    assert {name: info.pop(name) for name in list(info) if name not in MEASURED} == {
        "model_id": "prompted",
        "model_dtype": "float32",
        "served_model_name": "prompted",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 524_288,
        "max_input_length": 256,
        "max_batch_tokens": 16384,
        "max_batch_requests": 256,
        "auto_truncate": True,
        "tokenization_workers": len(http.get("/ready").json()["workers"]),
        "sha": None,
        "docker_label": None,
        "dimension": 384,
        "prompts": PROMPTS,
    }
    ids = {"id2label": {"0": "bad", "1": "so-so", "2": "good"}, "label2id": {"bad": 0, "so-so": 1, "good": 2}}
    assert model_servers.classifier.http.get("/info").json()["model_type"] == {"classifier": ids}
    one = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    assert model_servers.reranker.http.get("/info").json()["model_type"] == {"reranker": one}
    assert model_servers.sparse.http.get("/info").json()["model_type"] == {"embedding": {"pooling": "splade"}}
    kinds = {"classifier": ["classify", "embed"], "reranker": ["rerank"], "sparse": ["embed_sparse"]}
    for name, capabilities in kinds.items():
        assert getattr(model_servers, name).http.get("/models").json()["data"][0]["capabilities"] == capabilities


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health(http: httpx.Client, path: str) -> None:
    body = http.get(path).json()
    assert body.keys() == {"status", "unix"}
    assert body["status"] == "ready"


# -- Infinity ------------------------------------------------------------------------------------------


def test_infinitys_classify(model_servers: ModelServers) -> None:
    body = ask(model_servers.classifier.http, "/classify", {"input": TEXTS[:2], "model": "any"})
    assert body.keys() == {"object", "data", "model", "usage", "id", "created"}
    assert (body["object"], body["model"]) == ("classify", "classifier")
    assert body["data"] == ask(
        model_servers.classifier.http, "/predict", {"inputs": [[text] for text in TEXTS[:2]]}
    )
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0
    raw = ask(model_servers.classifier.http, "/classify", {"input": TEXTS[0], "raw_scores": True})["data"]
    assert raw == ask(model_servers.classifier.http, "/predict", {"inputs": [[TEXTS[0]]], "raw_scores": True})


def test_infinitys_rerank(model_servers: ModelServers) -> None:
    ranked = ask(model_servers.reranker.http, "/rerank", {"query": "fox", "texts": TEXTS})
    asked = {"query": "fox", "documents": TEXTS, "return_documents": True, "top_n": 3}
    body = ask(model_servers.reranker.http, "/rerank", asked)
    assert body.keys() == {"object", "results", "model", "usage", "id", "created"}
    assert (body["object"], body["model"]) == ("rerank", "reranker")
    assert body["results"] == [
        {"index": item["index"], "relevance_score": item["score"], "document": TEXTS[item["index"]]}
        for item in ranked[:3]
    ]


# -- Cohere --------------------------------------------------------------------------------------------


def test_coheres_embed(http: httpx.Client, reference: SentenceTransformer) -> None:
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = ask(
        http, "/v2/embed", {"texts": TEXTS, "model": "any", "embedding_types": kinds, "input_type": "other"}
    )
    assert body.keys() == {"id", "embeddings", "texts", "response_type", "meta"}
    assert re.fullmatch(UUID, body["id"])
    assert (body["texts"], body["response_type"]) == (TEXTS, "embeddings_by_type")
    num_tokens = sum(len(ids) for ids in reference.tokenizer(TEXTS)["input_ids"])
    counted = {"input_tokens": num_tokens}
    assert body["meta"] == {"api_version": {"version": "2"}, "billed_units": counted, "tokens": counted}
    found, rows = body["embeddings"], reference.encode(TEXTS)
    assert list(found) == kinds
    assert_close(found["float"], rows)
    assert_close([np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]], rows)
    whole = 127 / np.abs(rows).max(axis=1, keepdims=True) * rows
    assert np.abs(np.array(found["int8"]) - whole).max() <= 0.51
    assert np.array_equal(np.array(found["uint8"]) - 128, found["int8"])
    assert np.array_equal(found["ubinary"], np.packbits(np.array(found["float"]) > 0, axis=1))
    assert np.array_equal(np.array(found["binary"]) + 128, found["ubinary"])


def test_version_1_of_coheres_embed_has_a_list(http: httpx.Client, reference: SentenceTransformer) -> None:
    query = {"texts": TEXTS, "input_type": "search_query"}
    body = ask(http, "/v1/embed", {**query, "model": "any", "truncate": "END"})
    assert (body["response_type"], body["texts"]) == ("embeddings_floats", TEXTS)
    assert body["meta"]["api_version"] == {"version": "1"}
    assert_close(body["embeddings"], reference.encode(TEXTS, prompt_name="query"))
    by_type = ask(http, "/v1/embed", {**query, "embedding_types": ["float"]})
    assert by_type["response_type"] == "embeddings_by_type"
    assert_close(by_type["embeddings"]["float"], body["embeddings"])


def test_coheres_input_types_select_prompts(http: httpx.Client, reference: SentenceTransformer) -> None:
    for kind, prompt in (("search_query", "query"), ("search_document", "passage"), ("classification", None)):
        body = ask(http, "/v2/embed", {"texts": TEXTS, "input_type": kind, "output_dimension": None})
        assert_close(body["embeddings"]["float"], reference.encode(TEXTS, prompt_name=prompt))
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    body = ask(http, "/v2/embed", {"inputs": inputs, "input_type": "search_query"})
    assert_close(body["embeddings"]["float"], reference.encode(TEXTS, prompt_name="query"))


def test_cohere_cuts_at_the_start_or_the_end(http: httpx.Client) -> None:
    text = "fox " + LONG + "dog"
    for side, direction in (("START", "left"), ("END", "right")):
        body = ask(http, "/v2/embed", {"texts": [text], "truncate": side, "output_dimension": 8})
        expected = ask(http, "/embed", {"inputs": [text], "truncation_direction": direction, "dimensions": 8})
        assert_close(body["embeddings"]["float"], expected)


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank"])
def test_coheres_rerank(model_servers: ModelServers, path: str) -> None:
    ranked = ask(model_servers.reranker.http, "/rerank", {"query": "fox", "texts": TEXTS})
    body = ask(model_servers.reranker.http, path, {"model": "any", "query": "fox", "documents": TEXTS, "top_n": 2})
    more = (
        {"object", "model", "usage", "data"} if path == "/v1/rerank" else set()
    )  # for Jina's and Voyage's clients
    assert body.keys() == {"id", "results", "meta"} | more
    assert body["results"] == [{"index": item["index"], "relevance_score": item["score"]} for item in ranked[:2]]
    asked = {"query": "fox", "documents": [{"text": text} for text in TEXTS], "return_documents": True}
    first = ask(model_servers.reranker.http, path, asked)["results"][0]
    assert first["document"] == {"text": TEXTS[ranked[0]["index"]]}


# -- Ollama --------------------------------------------------------------------------------------------


def test_ollamas_embed(http: httpx.Client, reference: SentenceTransformer) -> None:
    extras = {"options": {"num_ctx": 8}, "keep_alive": "5m", "truncate": True}
    body = ask(http, "/api/embed", {"model": "any", "input": TEXTS, **extras})
    assert body.keys() == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert body["model"] == "any"
    assert_close(body["embeddings"], reference.encode(TEXTS))
    assert body["prompt_eval_count"] == sum(len(ids) for ids in reference.tokenizer(TEXTS)["input_ids"])
    assert body["total_duration"] > 0
    assert len(ask(http, "/api/embed", {"input": TEXTS[0], "dimensions": 8})["embeddings"][0]) == 8
    assert_close([ask(http, "/api/embeddings", {"prompt": TEXTS[0]})["embedding"]], reference.encode(TEXTS[:1]))


def test_ollamas_clients_find_the_model_under_any_name(http: httpx.Client) -> None:
    (listed,) = http.get("/api/tags").json()["models"]
    (running,) = http.get("/api/ps").json()["models"]
    assert listed["name"] == listed["model"] == running["name"] == "prompted"
    assert listed["details"]["family"] == "bert"
    shown = ask(http, "/api/show", {"model": "any:latest"})
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["bert.embedding_length"] == 384
    assert shown["model_info"]["bert.context_length"] == 256
    assert shown["details"] == listed["details"]
    assert ask(http, "/api/pull", {"name": "any", "stream": True}) == {"status": "success"}
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", http.get("/api/version").json()["version"])


# -- several dialects ----------------------------------------------------------------------------------


def test_several_poolings_and_spans_in_one_request(http: httpx.Client, reference: SentenceTransformer) -> None:
    both = {"pooling_strategy": ["REDUCE_MEAN", "CLS_TOKEN"], "pooling_layer": -1, "normalize": False}
    result = ask(http, "/encode", {"id": 1, "texts": TEXTS, "options": both})["result"]
    tokens = [rows.numpy() for rows in reference.encode(TEXTS, output_value="token_embeddings")]
    assert_close(result, [np.concatenate([rows.mean(0), rows[0]]) for rows in tokens])
    asked = {"id": 1, "texts": [TEXTS[2]], "spans": [[[0, 9], [10, 15]]]}
    options = {"normalize": False, "show_tokens": True, "show_offsets": True}
    body = ask(http, "/encode", {**asked, "options": options})
    assert_close(body["result"][0], [tokens[2][1:3].mean(0), tokens[2][3]])
    assert body["tokens"][0][:4] == ["[CLS]", "the", "quick", "brown"]
    assert body["offsets"][0][1:4] == [[0, 3], [4, 9], [10, 15]]


def test_hundreds_of_texts_fit_into_one_request(model_servers: ModelServers) -> None:
    texts = [f"one {i}" for i in range(600)]
    assert np.shape(ask(model_servers.classifier.http, "/embed", {"inputs": texts})) == (600, 64)
