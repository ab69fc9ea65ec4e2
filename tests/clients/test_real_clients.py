"""Unmodified third-party clients work with a running server.

Each driver in drivers/ uses one client and prints the results: `vectors` contains the vectors of all TEXTS or only
of the first text, `short` contains vectors of 64 components, and `refusals` contains the client's error messages.
Tests that are marked slow_clients run only with `make clients`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import DOCUMENTS, TEXTS

from tests.support.running_server import RunningServer

KEY_IS_MISSING = "this server requires an API key: send Authorization: Bearer <key>"
EMPTY_TEXT = "[1] is an empty string"  # after the name of the field
TOO_LONG = "[0]: a text may have at most 254 tokens, not counting special tokens, got 500"
FOREIGN_IDS = (
    "is not in this model's vocabulary of 30522: these ids come from another model's tokenizer. Send the text "
    "itself, or ids from this server's /tokenize (langchain-openai: check_embedding_ctx_length=False)"
)
MODEL = "sentence-transformers/all-MiniLM-L6-v2"

Drive = Callable[..., dict[str, Any]]
Ranking = list[tuple[int, float]]


def slow(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs only with `make clients`. The first test that needs an environment installs it."""
    marked: Callable[..., None] = pytest.mark.slow_clients(pytest.mark.timeout(1200)(test))
    return marked


def assert_near(rows: Any, expected: np.ndarray, name: str = "") -> None:
    rows = np.asarray(rows, np.float64)
    assert rows.shape == expected.shape, name
    assert np.abs(rows - expected).max() <= 1e-5, name


def assert_vectors(answers: dict[str, Any], expected: np.ndarray) -> None:
    """Check that each answer has the vectors of sentence-transformers, for all texts or for the first one only."""
    for name, rows in answers.items():
        assert len(rows) in (1, len(expected)), name
        assert_near(rows, expected[: len(rows)], name)


def cut(expected: np.ndarray) -> np.ndarray:
    """Return the first 64 components, normalized again."""
    short = expected[:, :64]
    return np.asarray(short / np.linalg.norm(short, axis=1, keepdims=True))


def assert_ranking(found: list[Any], expected: Ranking) -> None:
    """Check that `found` is the beginning of the expected ranking. Each item begins with index and score."""
    assert [index for index, *_ in found] == [index for index, _ in expected[: len(found)]]
    assert_near([score for _, score, *_ in found], np.array([score for _, score in expected[: len(found)]]))


def assert_refusals(found: dict[str, str], expected: dict[str, str]) -> None:
    """Check that each message contains the expected one. Clients add text around the server's message."""
    assert found.keys() == expected.keys()
    for name, message in expected.items():
        assert message in found[name], name


def test_openai(drive: Drive, expected: np.ndarray) -> None:
    answers = drive("openai", "light")
    assert_vectors(answers["vectors"], expected)
    assert_near(answers["short"], cut(expected))
    assert answers["usage"] == {"prompt_tokens": 4 + 3, "total_tokens": 4 + 3}
    assert answers["models"] == [MODEL, "any"]
    assert answers["refusals"] == {
        "no such path": "NotFoundError: Error code: 404 - Not Found: POST /v1/nope",
        "wrong key": f"AuthenticationError: Error code: 401 - {KEY_IS_MISSING}",
        "empty text": f"UnprocessableEntityError: Error code: 422 - input{EMPTY_TEXT}",
        "foreign ids": f"UnprocessableEntityError: Error code: 422 - input[0]: token id 99999 {FOREIGN_IDS}",
    }


def test_huggingface_hub(drive: Drive, expected: np.ndarray) -> None:
    answers = drive("huggingface_hub", "light")
    assert_vectors(answers["vectors"], expected)
    assert_near(answers["short"], cut(expected))
    assert_near(answers["similarity"], expected[1:] @ expected[0])
    wanted = {"wrong key": KEY_IS_MISSING, "empty text": f"inputs{EMPTY_TEXT}", "too long": f"inputs{TOO_LONG}"}
    assert_refusals(answers["refusals"], wanted)


def test_ollama(drive: Drive, expected: np.ndarray) -> None:
    answers = drive("ollama", "light")
    assert_vectors(answers["vectors"], expected)
    assert_near(answers["short"], cut(expected))
    assert answers["models"] == [MODEL]
    assert answers["facts"] == ["demo", True, True, ["embedding"], MODEL, "success"]
    assert answers["refusals"] == {
        "wrong key": f"ResponseError: {KEY_IS_MISSING} (status code: 401)",
        "empty text": f"ResponseError: input{EMPTY_TEXT} (status code: 400)",
        "too long": f"ResponseError: input{TOO_LONG} (status code: 400)",
    }


def test_cohere(drive: Drive, expected: np.ndarray, ranker: RunningServer, expected_ranking: Ranking) -> None:
    answers = drive("cohere", "light", ranker_url=ranker)
    assert_vectors(answers["vectors"], expected)
    assert_near(answers["short"], cut(expected))
    rows = np.array(answers["vectors"]["with others"], np.float32)
    types = {name: np.array(values) for name, values in answers["types"].items()}
    scaled = rows * (127 / np.abs(rows).max(axis=1, keepdims=True))
    assert np.abs(types["int8"] - scaled).max() <= 0.51
    assert (types["uint8"] == types["int8"] + 128).all()
    assert (types["ubinary"] == np.packbits(rows > 0, axis=1)).all()
    assert (types["binary"] == types["ubinary"] - 128).all()
    assert (np.array([np.frombuffer(base64.b64decode(row), "<f4") for row in answers["base64"]]) == rows).all()
    assert_ranking(answers["ranking"], expected_ranking)
    wanted = {
        "wrong key": KEY_IS_MISSING,
        "empty text": f"texts{EMPTY_TEXT}",
        "too long": f"texts{TOO_LONG}",
        "no reranker": "the model is not a reranker: start the server with one to use this route",
    }
    assert_refusals(answers["refusals"], wanted)


@slow
def test_langchain(drive: Drive, expected: np.ndarray, open_server: RunningServer) -> None:
    answers = drive("langchain", "frameworks", open_url=open_server)
    assert_vectors(answers["vectors"], expected)
    assert answers["short"].keys() == {"openai", "ollama"}
    for rows in answers["short"].values():
        assert_near(rows, cut(expected))
    wanted = {
        "foreign ids": FOREIGN_IDS,
        "openai, wrong key": KEY_IS_MISSING,
        "infinity, no key": KEY_IS_MISSING,
        "ollama, wrong key": KEY_IS_MISSING,
    }
    assert_refusals(answers["refusals"], wanted)
    assert answers["refusals"]["foreign ids"].startswith("UnprocessableEntityError: Error code: 422 - input[")


@slow
def test_llama_index(drive: Drive, expected: np.ndarray, ranker: RunningServer, expected_ranking: Ranking) -> None:
    answers = drive("llama_index", "frameworks", ranker_url=ranker)
    assert_vectors(answers["vectors"], expected)
    assert_near(answers["short"], cut(expected))
    assert_ranking(answers["ranking"], expected_ranking)
    assert answers["error"] == {"error": KEY_IS_MISSING, "error_type": "Unauthorized"}
    assert_refusals(answers["refusals"], {"openai-like, no key": KEY_IS_MISSING})


@slow
def test_haystack(
    drive: Drive,
    reference: Any,
    expected: np.ndarray,
    ranker: RunningServer,
    expected_ranking: Ranking,
    sparse_server: RunningServer,
    sparse_folder: Path,
) -> None:
    from sentence_transformers import SentenceTransformer, SparseEncoder

    answers = drive("haystack", "frameworks", ranker_url=ranker, splade_url=sparse_server)
    assert_vectors(answers["vectors"], expected)
    *modules, _ = reference  # drops the last module, which normalizes the vectors
    assert_vectors(answers["plain"], np.asarray(SentenceTransformer(modules=modules, device="cpu").encode(TEXTS)))
    terms = SparseEncoder(str(sparse_folder), device="cpu").encode(DOCUMENTS, convert_to_sparse_tensor=False)
    for (indices, values), row in zip(answers["sparse"], terms.numpy(), strict=True):
        assert indices == np.flatnonzero(row).tolist()
        assert_near(values, row[indices])
    for ranking in (answers["ranking"], answers["cut_ranking"]):
        assert_ranking(ranking, expected_ranking)
    assert_refusals(answers["refusals"], {"wrong key": KEY_IS_MISSING, "ranker, no key": KEY_IS_MISSING})


@slow
def test_chromadb(drive: Drive, expected: np.ndarray) -> None:
    answers = drive("chromadb", "frameworks")
    assert_vectors(answers["vectors"], expected)
    assert answers["nearest"] == ["0", "1", "2", "3", "4"]


@slow
def test_litellm(drive: Drive, expected: np.ndarray, ranker: RunningServer, expected_ranking: Ranking) -> None:
    answers = drive("litellm", "litellm", ranker_url=ranker)
    assert_vectors(answers["vectors"], expected)
    assert answers["short"].keys() == {"hosted_vllm", "infinity"}
    for rows in answers["short"].values():
        assert_near(rows, cut(expected))
    assert_near(answers["similarity"], expected[1:] @ expected[0])
    assert answers["rankings"].keys() == {"infinity", "huggingface", "cohere", "hosted_vllm"}
    for ranking in answers["rankings"].values():
        assert_ranking(ranking, expected_ranking)
        assert [text for *_, text in ranking] == [DOCUMENTS[index] for index, *_ in ranking]
    assert len(answers["refusals"]) == 6
    for name, message in answers["refusals"].items():
        assert KEY_IS_MISSING in message, name


@slow
def test_pymilvus(
    drive: Drive,
    expected: np.ndarray,
    open_server: RunningServer,
    ranker: RunningServer,
    expected_ranking: Ranking,
) -> None:
    answers = drive("pymilvus", "frameworks", open_url=open_server, ranker_url=ranker)
    assert_vectors(answers["vectors"], expected)
    assert answers["dim"] == 384
    assert_ranking(answers["ranking"], expected_ranking)
    assert answers["texts"] == [DOCUMENTS[index] for index, _ in expected_ranking]
    assert answers["refusals"] == {
        "no key": f"RuntimeError: {KEY_IS_MISSING}",
        "empty text": f"RuntimeError: input{EMPTY_TEXT}",
        "ranker, no key": f"RuntimeError: {KEY_IS_MISSING}",
        "no documents": 'RuntimeError: the body must have a non-empty list "texts" or "documents"',
    }


@slow
def test_infinity_client(
    drive: Drive, expected: np.ndarray, ranker: RunningServer, expected_ranking: Ranking
) -> None:
    answers = drive("infinity_client", "infinity", ranker_url=ranker)
    assert_vectors(answers["vectors"], expected)
    assert_near(answers["short"], cut(expected))
    assert answers["facts"] == [True, True, True]
    assert answers["models"] == [[MODEL, ["embed"], 256]]
    assert "unix" in answers["health"]
    assert_ranking(answers["ranking"], expected_ranking)
    assert answers["texts"] == [DOCUMENTS[index] for index, _ in expected_ranking[:4]]
    assert [label for label, _ in answers["labels"]] == ["LABEL_0"] * len(DOCUMENTS)
    assert all(0 < score < 1 for _, score in answers["labels"])
    assert answers["error"]["message"] == f"input{EMPTY_TEXT}"
    assert_refusals(answers["refusals"], {"wrong key": KEY_IS_MISSING})
