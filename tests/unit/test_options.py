"""Valid options of a request, and the errors for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest
from bert_serving.protocol import EncodeOptions, check_spans, options_from_json


def test_one_name_or_number_is_a_list_of_one() -> None:
    assert options_from_json({"pooling_strategy": "cls", "pooling_layer": -1}) == EncodeOptions(
        ("CLS_TOKEN",), (-1,)
    )


def test_null_means_the_default() -> None:
    assert options_from_json({"pooling_strategy": None, "normalize": None, "truncate": None}) == EncodeOptions()


def test_only_options_that_differ_from_the_default_are_written() -> None:
    assert EncodeOptions().to_json() == {}
    assert EncodeOptions(normalize=False, pairs=False).to_json() == {"normalize": False, "pairs": False}


@pytest.mark.parametrize(
    "name", ["lasttoken", "LAST_TOKEN", "mean_sqrt_len_tokens", "weightedmean", "none", "auto"]
)
def test_strategies_have_the_names_of_bert_as_service_and_sentence_transformers_in_any_case(name: str) -> None:
    assert options_from_json({"pooling_strategy": name}) == options_from_json(
        {"pooling_strategy": name.swapcase()}
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "options must be a JSON object, got list"),
        ({"poolin": 1}, "unknown option 'poolin'; the options are pooling_strategy, "),
        (
            {"pooling_strategy": "NO_SUCH_STRATEGY"},
            "pooling_strategy must be one of auto, NONE, .*, got 'NO_SUCH_STRATEGY'",
        ),
        ({"pooling_strategy": ["NONE", "CLS"]}, "NONE cannot be combined"),
        ({"pooling_strategy": []}, "pooling_strategy must be a name or a list of names, got \\[\\]"),
        ({"pooling_strategy": 3}, "pooling_strategy must be a name"),
        ({"pooling_layer": "top"}, "pooling_layer must be a whole number or a list of them, got 'top'"),
        ({"pooling_layer": [True]}, "pooling_layer must be a whole number"),
        ({"pooling_layer": list(range(33))}, "pooling_layer must be"),
        ({"pooling_layer": [-1, -2, -1]}, "pooling_layer must not contain -1 more than once"),
        ({"pooling_layer": 2**31}, "pooling_layer must be the number of a layer, got 2147483648"),
        ({"pooling_strategy": ["MEAN", "CLS", "mean"]}, "must not contain 'REDUCE_MEAN' more than once"),
        ({"normalize": 1}, "normalize must be true or false, got 1"),
        ({"pairs": "yes"}, "pairs must be true or false, got 'yes'"),
        ({"dimensions": 0}, "dimensions must be a whole number from 1, got 0"),
        ({"dimensions": 2.0}, "dimensions must be"),
        ({"dimensions": 2**31}, "dimensions must be"),
        ({"truncate": "middle"}, "truncate must be one of right, left, error, got 'middle'"),
        ({"long_text": True}, "long_text must be one of truncate, chunk, got True"),
        ({"prompt": 1}, "prompt must be a string, got 1"),
        ({"prompt": "a\ud800"}, "prompt contains a lone surrogate"),
        ({"prompt_name": "\ud800"}, "prompt_name contains a lone surrogate"),
        ({"prompt": "a" * 4097}, "prompt must have at most 4096 characters, got 4097"),
        ({"prompt": "a", "prompt_name": "b"}, "prompt or prompt_name, not both"),
    ],
)
def test_bad_options_are_named(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        options_from_json(value)


HUGE = "x" * 1_000_000


@pytest.mark.parametrize(
    "value",
    [
        {HUGE: 1},
        {"pooling_strategy": HUGE},
        {"pooling_strategy": [HUGE, 1]},
        {"pooling_strategy": [1] * 1_000_000},
        {"pooling_layer": HUGE},
        {"pooling_layer": [[HUGE] * 100] * 100},
        {"pooling_layer": {HUGE: HUGE}},
        {"normalize": HUGE},
        {"dimensions": HUGE},
        {"dimensions": 10**4000},
        {"truncate": HUGE},
        {"long_text": [HUGE]},
        {"prompt": [HUGE]},
        {"prompt_name": {"a": HUGE}},
    ],
)
def test_errors_repeat_little_of_a_huge_value(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        options_from_json(value)
    assert len(str(caught.value)) < 500


def test_errors_repeat_little_of_a_huge_span() -> None:
    with pytest.raises(ValueError, match="spans") as caught:
        check_spans([[[HUGE, HUGE]]], 1)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "spans",
    [None, [], [[[0, 1]]] * 3, [[], [[0, 1]]], [[[0]], [[0, 1]]], [[[1, 1]], [[0, 1]]], [[[-1, 1]], [[0, 1]]],
     [[["a", "b"]], [[0, 1]]], [[[0, True]], [[0, 1]]], ["ab", [[0, 1]]], [[[0, 1]] * 1025, [[0, 1]]],
     [[[0, 2**31]], [[0, 1]]]],
)  # fmt: skip
def test_invalid_spans_are_refused(spans: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="spans"):
        check_spans(spans, 2)


def test_every_text_needs_spans() -> None:
    check_spans([[[0, 1], (3, 9)], [[0, 1]]], 2)
    with pytest.raises(ValueError, match=r"at most 262144 pairs in one request, got 262400"):
        check_spans([[[0, 1]] * 1025] * 256, 256)
