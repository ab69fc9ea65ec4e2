"""Valid lists of texts, and the errors for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest
from bert_serving.protocol import MAX_TEXT_CHARS, PayloadTooLarge, check_texts
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


@given(st.lists(WORDS, min_size=1))
def test_any_unicode_strings_are_texts(texts: list[str]) -> None:
    assert check_texts(texts) is False


@given(st.lists(st.lists(WORDS, min_size=1), min_size=1))
def test_lists_of_tokens_are_tokenized_texts(texts: list[list[str]]) -> None:
    assert check_texts(texts) is True


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1), min_size=1))
def test_lists_of_ids_are_tokenized_texts(texts: list[list[int]]) -> None:
    assert check_texts(texts) is True


@pytest.mark.parametrize("number", [2**31, -1, 2**63, 2**70])
def test_a_negative_number_or_one_beyond_31_bits_is_not_an_id(number: int) -> None:
    with pytest.raises(ValueError, match=r"^texts\[1\] contains a number that is not a token id$"):
        check_texts([[1], [2, number]])


def test_pairs_are_texts() -> None:
    assert check_texts([{"text": "a", "text_pair": "b"}] * 2) is False


def test_blank_text_is_accepted() -> None:
    assert check_texts([" "]) is False


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts must be a list of strings, got null"),
        ("a text", "texts must be a list of strings, got str"),
        (("a", "b"), "texts must be a list of strings, got tuple"),
        ({"texts": ["a"]}, "texts must be a list of strings, got dict"),
        ([1], "texts[0] must be a string, got int"),
        (["a", None], "texts[1] must be a string, got null"),
        (["a", ["b"]], "texts[1] must be a string, got list"),
        (["a", b"b"], "texts[1] must be a string, got bytes"),
        ([["a"], "b"], "texts[1] must be a list of tokens like texts[0], got str"),
        ([["a"], [1, "b"]], "texts[1][0] must be a string, got int"),
        ([["a"], [1, True]], "texts[1][0] must be a string, got int"),
        ([{"text": "a"}], 'texts[0] must be {"text": ..., "text_pair": ...} like texts[0]'),
        ([{"text": "a", "text_pair": "b"}, "c"], 'texts[1] must be {"text": ..., "text_pair": ...} like texts[0]'),
        ([{"text": "a", "text_pair": 1}], "text_pair of texts[0] must be a string, got int"),
        ([["a"], ["b", 2]], "texts[1][1] must be a string, got int"),
        ([[["a"]]], "texts[0][0] must be a string, got list"),
    ],
)
def test_wrong_type_raises_type_error_that_names_the_place(texts: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_texts(texts)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts must not be empty"),
        (["a", ""], "texts[1] is an empty string"),
        ([["a"], []], "texts[1] has no token"),
        ([{"text": "a", "text_pair": "\0"}], "text_pair of texts[0] contains a NUL character"),
        ([["a", ""]], "texts[0][1] is an empty string"),
        (["a", "b\0c"], "texts[1] contains a NUL character"),
        ([["a"], ["\0"]], "texts[1][0] contains a NUL character"),
        (["a", "\ud800"], "texts[1] contains a lone surrogate, which is not Unicode text"),
        (["\udc00\ud800"], "texts[0] contains a lone surrogate, which is not Unicode text"),
        ([["é", "x\udfff"]], "texts[0][1] contains a lone surrogate, which is not Unicode text"),
    ],
)
def test_wrong_value_raises_value_error_that_names_the_place(texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_texts(texts)
    assert str(caught.value) == message


def test_a_surrogate_pair_split_over_two_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        check_texts(["\ud83d", "\ude00"])


LONG, TOO_LONG = "x" * MAX_TEXT_CHARS, "x" * (MAX_TEXT_CHARS + 1)


@pytest.mark.parametrize("texts", [["a", LONG], [LONG] * 2, [{"text": LONG, "text_pair": LONG}], [["a", LONG]]])
def test_texts_of_the_largest_length_are_accepted(texts: Any) -> None:
    check_texts(texts)


@pytest.mark.parametrize(
    ("texts", "place"),
    [
        (["a", TOO_LONG], "texts[1]"),
        ([["a"], ["b", TOO_LONG]], "texts[1][1]"),
        ([{"text": "a", "text_pair": TOO_LONG}], "text_pair of texts[0]"),
    ],
    ids=["string", "token", "pair"],
)
def test_a_longer_text_is_too_large(texts: Any, place: str) -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        check_texts(texts)
    assert str(caught.value) == f"{place} may have at most 4194304 characters, got 4194305"
