"""A client checks its texts before it sends them. It also checks the version of the server."""

from __future__ import annotations

import re
from typing import Any

import pytest
from bert_serving.client.checks import check_request, check_version_of


@pytest.mark.parametrize(
    ("texts", "is_tokenized", "message"),
    [
        (["a", " "], False, "texts[1] is blank: ' '"),
        (["\t\n\u3000", "a"], False, "texts[0] is blank: '\\t\\n\\u3000'"),
        ([["a"], ["b", "  "]], True, "texts[1][1] is blank: '  '"),
        (["a", ""], False, "texts[1] is an empty string"),
        ([["a"], []], True, "texts[1] has no token"),
    ],
)
def test_blank_texts_and_tokens_are_refused(texts: Any, is_tokenized: bool, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_request(texts, is_tokenized=is_tokenized)


@pytest.mark.parametrize(("texts", "is_tokenized"), [([["a"]], False), (["a"], True)])
def test_is_tokenized_must_fit_the_texts(texts: Any, is_tokenized: bool) -> None:
    with pytest.raises(TypeError, match="texts must be a list of"):
        check_request(texts, is_tokenized=is_tokenized)


def test_white_space_around_words_is_accepted() -> None:
    check_request([" a ", "b\n"], is_tokenized=False)
    check_request([[" a ", "b"]], is_tokenized=True)


def test_pairs_and_ids_are_accepted() -> None:
    check_request([{"text": "a", "text_pair": "b"}], is_tokenized=False)
    check_request([[101, 102], [101]], is_tokenized=True)


@pytest.mark.parametrize("config", [{}, {"server_version": "1.9.9"}])
def test_server_of_another_version_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(AttributeError, match="version mismatch"):
        check_version_of(config)
