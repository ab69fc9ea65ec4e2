"""Every kind of bad request gets the right status and body in every dialect."""

from __future__ import annotations

import functools
import gzip
import json
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.model_servers import ModelServers
from tests.support.running_server import RunningServer
from tests.support.waiting import HANG_S, wait_until

LONG = "word " * 600
ADVICE = (
    "is not in this model's vocabulary of 30522: these ids come from another model's tokenizer. Send the text "
    "itself, or ids from this server's /tokenize (langchain-openai: check_embedding_ctx_length=False)"
)
TOO_LONG = "a text may have at most 254 tokens, not counting special tokens, got 600"
NO_HEAD = "LOGITS needs a model for sequence classification"
NO_RERANKER = "the model is not a reranker: start the server with one to use this route"
NO_EMBEDDER = "the model is a reranker, so it gives no embeddings: use /rerank"
NO_SPLADE = "SPLADE needs a server that was started with -pooling_strategy SPLADE, or a sparse model"
SPARSE_ONLY = (
    "this server returns several vectors per text (-pooling_strategy NONE or SPLADE): use /encode, /embed_all "
    "or /embed_sparse"
)
RAGGED = "results of different lengths cannot be sent as raw or npy: ask for JSON or base64"
FORMATS = "nput should be 'float', 'base64', 'raw' or 'npy', got 'hex'"
DTYPES = "input should be 'float32', 'float16', 'int8', 'uint8', 'binary' or 'ubinary', got 'int4'"
KINDS = "input should be 'float', 'int8', 'uint8', 'binary', 'ubinary' or 'base64', got 'int4'"
FROM_1 = "input should be greater than or equal to 1, got 0"
NO_BOOL = "input should be a valid boolean, unable to interpret input, got 'maybe'"
PROMPTS = "prompt_name must be one of the model's prompts; it has query, passage, got 'nope'"

Say = Callable[[int, str], Any]


def openai(status: int, message: str) -> Any:
    code, kind = {
        401: ("unauthorized", "authentication_error"),
        404: ("unknown_path", "invalid_request_error"),
        405: ("wrong_method", "invalid_request_error"),
        413: ("payload_too_large", "invalid_request_error"),
        503: ("unavailable", "server_error"),
    }.get(status, ("invalid_request", "invalid_request_error"))
    inner = {"message": message, "type": kind, "param": None, "code": code}
    return {"error": inner, "message": message, "type": kind, "code": status}


def tei(status: int, message: str) -> Any:
    kinds = {401: "Unauthorized", 424: "Backend", 503: "Unhealthy"}
    return {"error": message, "error_type": kinds.get(status, "Validation")}


def cohere(_: int, message: str) -> Any:
    return {"message": message}  # assert_says checks the id


def ollama(_: int, message: str) -> Any:
    return {"error": message}


def bert_as_service(status: int, message: str) -> Any:
    kinds = {
        401: "Unauthorized",
        404: "HTTPException",
        405: "HTTPException",
        413: "PayloadTooLarge",
        503: "Unavailable",
    }
    return {"description": message, "type": kinds.get(status, "InvalidRequest"), "status": status}


def assert_says(reply: httpx.Response, say: Say, status: int, message: str) -> None:
    body = reply.json()
    if say is cohere:
        assert re.fullmatch("[0-9a-f-]{36}", body.pop("id"))
    assert (reply.status_code, body) == (status, say(status, message))
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.headers["x-request-id"]) == 32


#: The route, its dialect, the field with the texts, and the status for a body that is JSON but not valid.
EMBEDDERS: list[tuple[str, Say, str, int]] = [
    ("/v1/embeddings", openai, "input", 422),
    ("/embeddings", openai, "input", 422),
    ("/embed", tei, "inputs", 422),
    ("/embed_all", tei, "inputs", 422),
    ("/", tei, "inputs", 422),
    ("/api/embed", ollama, "input", 400),
]
POSTS: list[tuple[str, Say]] = [
    *((path, say) for path, say, _, _ in EMBEDDERS),
    ("/classify", openai),
    *(
        (path, tei)
        for path in ("/embed_sparse", "/similarity", "/predict", "/tokenize", "/decode", "/rerank", "/invocations")
    ),
    ("/v2/embed", cohere),
    ("/v2/rerank", cohere),
    ("/v1/rerank", cohere),
    ("/api/embeddings", ollama),
    ("/encode", bert_as_service),
]
GETS: list[tuple[str, Say]] = [
    ("/v1/models", openai),
    ("/models", openai),
    ("/info", tei),
    ("/api/tags", ollama),
    ("/status/server", bert_as_service),
    ("/status/client", bert_as_service),
]


@pytest.mark.parametrize(("path", "say"), POSTS)
@pytest.mark.parametrize("content", [b"not json", b"", b"\xff\xfe", b'{"a": 1', b"[" * 1000])
def test_a_body_that_is_no_json(model_servers: ModelServers, path: str, say: Say, content: bytes) -> None:
    reply = model_servers.prompted.http.post(path, content=content)
    said = re.search(r"the body is not JSON: [^\"]+", reply.text)
    assert said
    assert_says(reply, say, 400, said.group())


@pytest.mark.parametrize(("path", "say"), POSTS)
def test_a_compressed_body_that_cannot_be_decompressed(model_servers: ModelServers, path: str, say: Say) -> None:
    for content, coding, message in (
        (b"{}", "gzip", "the body is not valid gzip: Error -3 while decompressing data: incorrect header check"),
        (gzip.compress(b"{}")[:-1], "gzip", "the body is not valid gzip: its end is missing"),
        (b"{}", "br", "content-encoding must be gzip, got 'br'"),
    ):
        reply = model_servers.prompted.http.post(path, content=content, headers={"Content-Encoding": coding})
        assert_says(reply, say, 400, message)


@pytest.mark.parametrize(("path", "say"), POSTS)
def test_a_body_that_is_too_large_before_or_after_decompression(
    model_servers: ModelServers, path: str, say: Say
) -> None:
    """A body of 200 kB that would decompress to 200 MB must also be refused."""
    http, limit = model_servers.prompted.http, 1 << 20
    whole = b'{"a": "' + b"x" * limit + b'"}'
    for reply in (http.post(path, content=whole), http.post(path, content=iter([whole[:9], whole[9:]]))):
        assert_says(reply, say, 413, "the body must have at most 1048576 bytes")
    reply = http.post(path, content=bomb(), headers={"Content-Encoding": "gzip"})
    assert_says(reply, say, 413, "the body must have at most 1048576 bytes when decompressed")


@functools.cache
def bomb() -> bytes:
    """Return 200 kB of gzip that decompress to 200 MB."""
    return gzip.compress(b'{"a": "' + b"x" * 200_000_000 + b'"}', 1)


@pytest.mark.parametrize(("path", "say"), [*POSTS, *GETS])
def test_a_key_that_is_missing_or_wrong(model_servers: ModelServers, path: str, say: Say) -> None:
    method = "GET" if (path, say) in GETS else "POST"
    for headers in ({}, {"Authorization": "Bearer three"}, {"X-API-Key": "three"}, {"Authorization": "Basic one"}):
        reply = httpx.request(method, model_servers.prompted.running.url + path, headers=headers, timeout=HANG_S)
        assert_says(reply, say, 401, "this server requires an API key: send Authorization: Bearer <key>")
        assert reply.headers["www-authenticate"] == "Bearer"


def test_every_key_is_accepted_in_every_form_and_some_routes_require_none(model_servers: ModelServers) -> None:
    url = model_servers.prompted.running.url
    for headers in (
        {"Authorization": "Bearer one"},
        {"Authorization": "bearer two"},
        {"Authorization": "two"},
        {"X-API-Key": "one"},
    ):
        assert httpx.post(f"{url}/embed", json={"inputs": "a"}, headers=headers, timeout=HANG_S).status_code == 200
    for path in ("/live", "/ready", "/health", "/ping", "/metrics", "/docs", "/openapi.json", "/"):
        assert httpx.get(url + path, timeout=HANG_S).status_code == 200


@pytest.mark.parametrize(("path", "say", "field", "status"), EMBEDDERS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "FIELD[0] is an empty string"),
        (["a", ""], "FIELD[1] is an empty string"),
        (["a", "\0"], "FIELD[1] is an empty string"),
        (["a", 3], "FIELD[1] must be a string, got int"),
        ([None], "FIELD[0] must be a string, got null"),
        ([1.5], "FIELD[0] must be a string, got float"),
        ([[]], "FIELD[0] has no token"),
        ([[1000], [99999]], f"FIELD[1]: token id 99999 {ADVICE}"),
        (["a", [99999]], f"FIELD[1]: token id 99999 {ADVICE}"),
        ([[-1]], "FIELD[0] contains a number that is not a token id"),
        ([[2**70]], "FIELD[0] contains a number that is not a token id"),
    ],
)
def test_texts_of_another_type(
    model_servers: ModelServers, path: str, say: Say, field: str, status: int, value: Any, message: str
) -> None:
    message = message.replace("FIELD", field)
    assert_says(model_servers.prompted.http.post(path, json={field: value}), say, status, message)


@pytest.mark.parametrize(("path", "say", "field", "status"), EMBEDDERS)
def test_no_texts_at_all(model_servers: ModelServers, path: str, say: Say, field: str, status: int) -> None:
    reply = model_servers.prompted.http.post(path, json={field: []})
    if say is ollama:  # Ollama's clients load a model with an empty request
        assert (reply.status_code, reply.json()["embeddings"]) == (200, [])
    elif say is tei:
        assert (reply.status_code, reply.json()["error_type"]) == (400, "Empty")
    else:
        assert_says(reply, say, 400, f"{field} must not be empty")


@pytest.mark.parametrize(("path", "say", "field", "status"), EMBEDDERS)
def test_fields_that_are_missing_or_of_another_type(
    model_servers: ModelServers, path: str, say: Say, field: str, status: int
) -> None:
    http = model_servers.prompted.http
    kinds = "a string or a list of strings" if say is ollama else "a string, a list of strings, or token ids"
    if path != "/":  # this route checks the form of the body first
        assert_says(http.post(path, json={}), say, status, f"the body has no '{field}'")
        assert_says(http.post(path, json=[]), say, status, "the body must be a JSON object")
        for value, shown in ((5, "5"), (None, "null"), (True, "True"), ({"a": 1}, "{'a': 1}")):
            reply = http.post(path, json={field: value})
            assert_says(reply, say, status, f"{field}: must be {kinds}, got {shown}")


@pytest.mark.parametrize(
    ("path", "say", "body", "status", "message"),
    [
        *(
            (path, say, {field: "a", "dimensions": value}, status, f"dimensions{message}, got {value!r}")
            for path, say, field, status in EMBEDDERS
            if path != "/embed_all"
            for value, message in (
                (-1, ": input should be greater than or equal to 1"),
                (10**30, ": input should be less than or equal to 2147483648"),
                ("8", ": input should be a valid integer"),
                (1.5, ": input should be a valid integer"),
                (385, " must be in 1..384 for this model"),
            )
        ),
        ("/embed", tei, {"inputs": "a", "dimensions": 0}, 422, f"dimensions: {FROM_1}"),
        ("/v2/embed", cohere, {"texts": ["a"], "output_dimension": 0}, 400, f"output_dimension: {FROM_1}"),
        (
            "/v2/embed",
            cohere,
            {"texts": ["a"], "output_dimension": 385},
            400,
            "dimensions must be in 1..384 for this model, got 385",
        ),
        *(
            (path, say, {field: "a", "encoding_format": "hex"}, 422, f"encoding_format: i{FORMATS}")
            for path, say, field, _ in EMBEDDERS
            if path in ("/v1/embeddings", "/embed", "/")
        ),
        *(
            (path, say, {field: "a", "output_dtype": "int4"}, 422, f"output_dtype: {DTYPES}")
            for path, say, field, _ in EMBEDDERS
            if path in ("/v1/embeddings", "/embed", "/")
        ),
        (
            "/encode",
            bert_as_service,
            {"id": 1, "texts": ["a"], "encoding_format": "hex"},
            400,
            f"encoding_format: I{FORMATS}",
        ),
        (
            "/encode",
            bert_as_service,
            {"id": 1, "texts": ["a"], "options": {"dimensions": 0}},
            400,
            "dimensions must be a whole number from 1, got 0",
        ),
        *(
            (path, tei, {"inputs": "a", "prompt_name": "nope"}, 422, PROMPTS)
            for path in ("/embed", "/embed_all", "/tokenize", "/")
        ),
        (
            "/similarity",
            tei,
            {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"prompt_name": "nope"}},
            422,
            PROMPTS,
        ),
        ("/encode", bert_as_service, {"id": 1, "texts": ["a"], "options": {"prompt_name": "nope"}}, 400, PROMPTS),
        *(
            (path, tei, {"inputs": ["a", LONG], "truncate": False}, 422, f"inputs[1]: {TOO_LONG}")
            for path in ("/embed", "/embed_all", "/")
        ),
        (
            "/similarity",
            tei,
            {"inputs": {"source_sentence": "a", "sentences": [LONG]}, "parameters": {"truncate": False}},
            422,
            f"inputs.sentences[0]: {TOO_LONG}",
        ),
        ("/v2/embed", cohere, {"texts": [LONG], "truncate": "NONE"}, 400, f"texts[0]: {TOO_LONG}"),
        ("/api/embed", ollama, {"input": LONG, "truncate": False}, 400, f"input[0]: {TOO_LONG}"),
        (
            "/embed",
            tei,
            {"inputs": "a", "truncation_direction": "up"},
            422,
            "truncation_direction: input should be 'left' or 'right', got 'up'",
        ),
        ("/embed", tei, {"inputs": "a", "normalize": "maybe"}, 422, f"normalize: {NO_BOOL}"),
        # Cohere
        ("/v2/embed", cohere, {}, 400, 'the body must have a non-empty list "texts"'),
        ("/v2/embed", cohere, {"texts": []}, 400, 'the body must have a non-empty list "texts"'),
        ("/v2/embed", cohere, {"texts": [""]}, 400, "texts[0] is an empty string"),
        ("/v2/embed", cohere, {"texts": ["\0"]}, 400, "texts[0] is an empty string"),
        ("/v2/embed", cohere, {"texts": "a"}, 400, "texts: must be a list of strings, got 'a'"),
        ("/v2/embed", cohere, {"texts": ["a", 5]}, 400, "texts[1] must be a string, got int"),
        (
            "/v2/embed",
            cohere,
            {"inputs": [{"content": [{"type": "image_url"}]}]},
            400,
            "inputs: every part must be of type text",
        ),
        ("/v2/embed", cohere, {"texts": ["a"], "embedding_types": ["int4"]}, 400, f"embedding_types[0]: {KINDS}"),
        (
            "/v2/embed",
            cohere,
            {"texts": ["a"], "truncate": "MIDDLE"},
            400,
            "truncate: input should be 'NONE', 'START' or 'END', got 'MIDDLE'",
        ),
        ("/v2/embed", cohere, [], 400, "the body must be a JSON object"),
        # /similarity, /tokenize, /decode
        ("/similarity", tei, {}, 422, "the body has no 'inputs'"),
        ("/similarity", tei, {"inputs": ["a"]}, 422, "inputs: input should be an object, got ['a']"),
        ("/similarity", tei, {"inputs": {"sentences": ["a"]}}, 422, "the body has no 'inputs.source_sentence'"),
        ("/", tei, {"inputs": {"source_sentence": "a"}}, 422, "the body has no 'inputs.sentences'"),
        (
            "/similarity",
            tei,
            {"inputs": {"source_sentence": "", "sentences": ["a"]}},
            422,
            "inputs.source_sentence is an empty string",
        ),
        ("/tokenize", tei, {}, 422, "the body has no 'inputs'"),
        ("/tokenize", tei, {"inputs": 5}, 422, "inputs: input should be a valid array, got 5"),
        ("/tokenize", tei, {"inputs": ["a", 5]}, 422, "inputs[1]: input should be a valid string, got 5"),
        ("/decode", tei, {}, 422, "the body has no 'ids'"),
        ("/decode", tei, {"ids": "a"}, 422, "ids: input should be a valid array, got 'a'"),
        ("/decode", tei, {"ids": [-1]}, 422, "ids[0][0]: input should be greater than or equal to 0, got -1"),
        ("/decode", tei, {"ids": [2**70]}, 422, f"ids[0][0]: input should be less than 4294967296, got {2**70}"),
        (
            "/decode",
            tei,
            {"ids": [[1000], [99999]]},
            422,
            "token id 99999 is not in this model's vocabulary of 30522",
        ),
        # routes that need a model of another kind
        ("/rerank", tei, {"query": "a", "texts": ["b"]}, 424, NO_RERANKER),
        ("/", tei, {"query": "a", "texts": ["b"]}, 424, NO_RERANKER),
        ("/v2/rerank", cohere, {"query": "a", "documents": ["b"]}, 400, NO_RERANKER),
        ("/predict", tei, {"inputs": "a"}, 422, NO_HEAD),
        ("/classify", openai, {"input": "a"}, 422, NO_HEAD),
        ("/embed_sparse", tei, {"inputs": "a"}, 422, NO_SPLADE),
        # /encode (tests/service/test_http.py tests more of its errors)
        (
            "/encode",
            bert_as_service,
            {"texts": ["a"]},
            400,
            'the body has no "id"; expected {"id": ..., "texts": [...]}',
        ),
        ("/encode", bert_as_service, {"id": 1, "texts": [[99999]]}, 400, f"texts[0]: token id 99999 {ADVICE}"),
        (
            "/encode",
            bert_as_service,
            {"id": 1, "texts": ["a"], "options": {"pooling_strategy": "NO_SUCH_STRATEGY"}},
            400,
            None,
        ),
        (
            "/encode",
            bert_as_service,
            {"id": 1, "texts": ["a"], "spans": [[[3, 1]]]},
            400,
            "spans[0] must hold [start, end] in characters, start < end, got [3, 1]",
        ),
        (
            "/encode",
            bert_as_service,
            {
                "id": 1,
                "texts": ["a"],
                "options": {"pooling_strategy": "NONE", "ragged": True},
                "encoding_format": "npy",
            },
            400,
            RAGGED,
        ),
        ("/api/embeddings", ollama, {}, 400, "the body has no 'prompt'"),
        ("/api/embeddings", ollama, {"prompt": ""}, 400, "prompt is an empty string"),
    ],
)
def test_invalid_or_missing_fields(
    model_servers: ModelServers, path: str, say: Say, body: Any, status: int, message: str | None
) -> None:
    reply = model_servers.prompted.http.post(path, json=body)
    if message is None:
        message = reply.json()["description"]
        assert message.startswith("pooling_strategy must be one of auto, NONE, REDUCE_MEAN,")
        assert message.endswith(", got 'NO_SUCH_STRATEGY'")
    assert_says(reply, say, status, message)


@pytest.mark.parametrize(
    ("path", "say", "status"), [("/rerank", tei, 422), ("/v2/rerank", cohere, 400), ("/v1/rerank", cohere, 400)]
)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": ["a"]}, "the body has no 'query'"),
        ({"query": None, "texts": ["a"]}, "query: input should be a valid string, got null"),
        ({"query": "a"}, 'the body must have a non-empty list "texts" or "documents"'),
        ({"query": "a", "texts": "b"}, "texts: must be a list of strings, got 'b'"),
        ({"query": "a", "texts": [5]}, "texts[0] must be a string, got int"),
        ({"query": "a", "documents": ["b", {"title": "b"}]}, "documents[1] must be a string, got null"),
        ({"query": "a", "texts": ["b"], "top_n": 0}, "top_n: input should be greater than or equal to 1, got 0"),
        (
            {"query": "a", "texts": [LONG], "truncate": False},
            "texts[0]: a text may have at most 509 tokens, not counting special tokens, got 601",
        ),
    ],
)
def test_what_cannot_be_ranked(
    model_servers: ModelServers, path: str, say: Say, status: int, body: Any, message: str
) -> None:
    assert_says(model_servers.reranker.http.post(path, json=body), say, status, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the body has no 'inputs'"),
        ({"inputs": [[1]]}, "inputs[0] must be a string, got int"),
        ({"inputs": [["a"], ["a", None]]}, "text_pair of inputs[1] must be a string, got null"),
        (
            {"inputs": 5},
            "inputs: must be a string, a pair of strings, or a list of lists of one or two strings, got 5",
        ),
        (
            {"inputs": ["a", "b", "c"]},
            "inputs: must be a list of lists for more than one text: [[text], [text, text_pair], ...], "
            "got ['a', 'b', 'c']",
        ),
        ({"inputs": [["a", "b", "c"]]}, "inputs: must contain lists of one or two strings, got [['a', 'b', 'c']]"),
        (
            {"inputs": LONG, "truncate": False},
            "inputs[0]: a text may have at most 510 tokens, not counting special tokens, got 600",
        ),
    ],
)
def test_what_cannot_be_predicted(model_servers: ModelServers, body: Any, message: str) -> None:
    assert_says(model_servers.classifier.http.post("/predict", json=body), tei, 422, message)


def test_what_cannot_be_classified(model_servers: ModelServers) -> None:
    for body, status, message in (
        ({}, 422, "the body has no 'input'"),
        ({"input": []}, 400, "input must not be empty"),
        ({"input": None}, 422, "input: must be a string or a list of strings, got null"),
        ({"input": [5]}, 422, "input[0] must be a string, got int"),
    ):
        assert_says(model_servers.classifier.http.post("/classify", json=body), openai, status, message)


def test_models_of_other_kinds_say_what_they_lack(model_servers: ModelServers) -> None:
    reply = model_servers.classifier.http.post("/rerank", json={"query": "a", "texts": ["b"]})
    assert_says(reply, tei, 422, "reranking needs a model with one label, this model has 3: use /predict")
    for path, say, field, status in EMBEDDERS:
        if path not in ("/", "/embed_all"):
            reply = model_servers.reranker.http.post(path, json={field: "a"})
            assert_says(reply, say, 424 if say is tei else 400, NO_EMBEDDER)
            assert_says(model_servers.sparse.http.post(path, json={field: "a"}), say, status, SPARSE_ONLY)
    assert_says(model_servers.sparse.http.post("/v2/embed", json={"texts": ["a"]}), cohere, 400, SPARSE_ONLY)
    assert_says(model_servers.sparse.http.post("/predict", json={"inputs": "a"}), tei, 422, NO_HEAD)


def test_other_methods_and_paths(model_servers: ModelServers) -> None:
    http = model_servers.prompted.http
    for path, _ in POSTS:
        if path != "/":
            reply = http.get(path)
            assert_says(reply, *other_error(reply, 405, "Method Not Allowed"))
            assert reply.headers["allow"] == "POST"
    for path, _ in GETS:
        reply = http.post(path, json={})
        assert_says(reply, *other_error(reply, 405, "Method Not Allowed"))
    for path in ("/nope", "/v1/nope", "/openai/nope", "/v2/nope", "/api/nope"):
        reply = http.post(path, json={})
        assert_says(reply, *other_error(reply, 404, "Not Found"))


def other_error(reply: httpx.Response, status: int, message: str) -> tuple[Say, int, str]:
    """Return what `assert_says` expects of an error outside of the handlers: its format depends on the path."""
    path = reply.request.url.path
    say = {"v1": openai, "openai": openai, "v2": cohere, "api": ollama}.get(path.split("/")[1], bert_as_service)
    return say, status, message if say is bert_as_service else f"{message}: {reply.request.method} {path}"


def test_while_the_model_loads_routes_that_need_it_say_so(tiny: Path) -> None:
    """The worker is paused while the gateway replies. After loading, base64 is float32 in spite of -fp16."""
    with RunningServer("-model_dir", tiny, "-fp16") as running:
        worker = _first_worker(running)
        worker.send_signal(signal.SIGSTOP)
        running.wait_for("HTTP is ready")
        with httpx.Client(base_url=running.url, timeout=HANG_S) as http:
            for reply, say in (
                (http.get("/info"), tei),
                (http.get("/v1/models"), openai),
                (http.post("/predict", json={"inputs": "a"}), tei),
                (http.post("/tokenize", json={"inputs": "a"}), tei),
                (http.post("/decode", json={"ids": [1]}), tei),
                (http.post("/", json={"inputs": "a"}), tei),
                (http.post("/v2/embed", json={"texts": ["a"]}), cohere),
            ):
                assert_says(reply, say, 503, "the model is still loading")
                assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
            assert_says(http.get("/health"), tei, 503, "not every worker is ready")
            ready = http.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
            assert http.get("/live").status_code == 200
            worker.send_signal(signal.SIGCONT)
            body = http.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}).json()
            assert len(body["data"][0]["embedding"]) == 4 * -(-64 * 4 // 3)
            raw = http.post("/encode", json={"id": 1, "texts": ["a"], "encoding_format": "raw"})
            assert (raw.headers["x-dtype"], len(raw.content)) == ("float16", 128)
            assert http.get("/info").json()["model_dtype"]


def _first_worker(running: RunningServer) -> psutil.Process:
    """Return the first worker process that the server starts."""
    server = psutil.Process(running.process.pid)

    def found() -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):  # a process that has just ended
            return [p for p in server.children() if any("spawn_main" in argument for argument in p.cmdline())]
        return []

    wait_until(found, lambda: running.log)
    return min(found(), key=lambda process: process.pid)


def test_no_server_failed_in_these_tests(model_servers: ModelServers) -> None:
    """No request of this module made a server log a traceback or become unready."""
    for served in (model_servers.prompted, model_servers.reranker, model_servers.classifier, model_servers.sparse):
        assert "Traceback" not in served.running.log
        assert served.http.get("/ready").json()["status"] == "ready"
        assert json.loads(served.http.get("/status/server").content)["status"] == 200
