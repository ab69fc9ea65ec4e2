"""With each option of a request, vectors equal a formula, alone and in a batch of requests with other options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bert_serving.protocol import options_from_json
from bert_serving.server.worker.encoder import Encoder, EncodingError
from bert_serving.server.worker.micro_batches import PreparedText
from bert_serving.server.worker.sequences import TokenizedText
from bert_serving.server.worker.tokenizer import Tokenizer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import normalizers
from transformers import AutoTokenizer

from tests.support.reference import STRATEGIES, Reference, deviation, layers_of, pool
from tests.support.tiny_models import WORDS, make_model

TEXTS = ["the dog", "a quick brown fox jumps over the lazy dog", "one", "word and word", "one two three four " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    """An encoder like that of a server started with -all_layers."""
    return Encoder(folder, device="cpu", dtype="float32", all_layers=True)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


# -- single options ------------------------------------------------------------------------------------


def test_several_strategies_are_concatenated_in_their_order(encoder: Encoder, reference: Reference) -> None:
    names = ["CLS_POOLED", *reversed(STRATEGIES)]
    rows = encoder.encode(TEXTS, pooling_strategy=names, pooling_layer=[1, -1])
    hidden = reference.hidden([reference.single(text) for text in TEXTS])
    for row, h in zip(rows, hidden, strict=True):
        tokens = layers_of(h, [1, -1])
        parts = [reference.pooled(h[-1][0]) if n == "CLS_POOLED" else pool(n, tokens) for n in names]
        assert deviation(row, np.concatenate(parts)) <= 1e-5
    alone = [encoder.encode(TEXTS, pooling_strategy=name, pooling_layer=[1, -1]) for name in names]
    assert deviation(rows, np.concatenate(alone, axis=1)) <= 1e-6


def test_strategies_may_be_named_as_in_sentence_transformers(encoder: Encoder) -> None:
    names = {"mean": "REDUCE_MEAN", "max": "REDUCE_MAX", "cls": "CLS_TOKEN", "lasttoken": "LAST_TOKEN"}
    names |= {"weightedmean": "WEIGHTED_MEAN", "mean_sqrt_len_tokens": "MEAN_SQRT_LEN"}
    for theirs, ours in names.items():
        both = [encoder.encode(TEXTS, pooling_strategy=name) for name in (theirs, ours)]
        assert np.array_equal(*both), theirs


@pytest.mark.parametrize("name", ["REDUCE_MEAN", "REDUCE_MEAN_MAX"])
@pytest.mark.parametrize("dimensions", [1, 7, 64])
def test_the_vector_is_cut_to_dimensions_before_it_is_normalized(
    encoder: Encoder, name: str, dimensions: int
) -> None:
    whole = encoder.encode(TEXTS, pooling_strategy=name, normalize=False)
    cut = encoder.encode(TEXTS, pooling_strategy=name, dimensions=dimensions)
    assert np.array_equal(cut, whole[:, :dimensions])
    normalized = encoder.encode(TEXTS, pooling_strategy=name, dimensions=dimensions, normalize=True)
    assert deviation(normalized, unit(whole[:, :dimensions])) <= 1e-6


def test_normalize_and_dimensions_apply_to_each_token(encoder: Encoder, reference: Reference) -> None:
    results = encoder.encode_tokens(TEXTS, pooling_layer=-1, dimensions=9, normalize=True)
    hidden = reference.hidden([reference.single(text) for text in TEXTS])
    for result, h in zip(results, hidden, strict=True):
        assert deviation(result.vectors, unit(h[-1][:, :9])) <= 1e-5


def test_a_request_may_turn_off_the_normalizing_of_the_server(folder: Path, encoder: Encoder) -> None:
    server = Encoder(folder, device="cpu", dtype="float32", normalize=True)
    plain = encoder.encode(TEXTS)
    assert deviation(server.encode(TEXTS), unit(plain)) <= 1e-6
    assert deviation(server.encode(TEXTS, normalize=False), plain) <= 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_is_cut_on_the_requested_side(folder: Path, reference: Reference, side: str) -> None:
    short = Encoder(folder, device="cpu", dtype="float32", pooling_layer=[-1], max_seq_len=10)
    texts = ["one two three", "the quick brown fox jumps over a lazy dog and a word", "word " * 4000 + "fox"]
    words = [reference.words(text) for text in texts]
    cls, sep = reference.tokenizer.cls_token_id, reference.tokenizer.sep_token_id
    ids = [[cls, *(w[:8] if side == "right" else w[-8:]), sep] for w in words]
    expected = [h[-1].mean(0) for h in reference.hidden(ids)]
    assert deviation(short.encode(texts, truncate=side), expected) <= 1e-5


def test_a_long_text_is_refused_with_truncate_error(folder: Path) -> None:
    short = Encoder(folder, device="cpu", dtype="float32", max_seq_len=5)
    assert short.encode(["one two three"], truncate="error").shape == (1, 64)
    too_long = r"texts\[1\]: a text may have at most 3 tokens, not counting special tokens, got 4"
    with pytest.raises(ValueError, match=too_long):
        short.encode(["one", "one two three four"], truncate="error")
    with pytest.raises(ValueError, match=r"got \d+ or more"):
        short.encode(["one " * 100_000], truncate="error")
    prepared = short.prepare(["one", "one two three four"], options_from_json({"truncate": "error"}))
    assert [isinstance(text, PreparedText) for text in prepared] == [True, False]


def test_a_prompt_precedes_strings_and_not_lists_of_tokens(encoder: Encoder, reference: Reference) -> None:
    texts = ["the dog", "a fox ||| two"]
    ids, short = zip(
        (reference.single("word: the dog"), [0] * (3 + len(reference.words("the dog")) + 1)),
        reference.pair(reference.words("word: a fox"), reference.words("two")),
        strict=True,
    )
    types = tuple([*t, *[0] * (len(i) - len(t))] for i, t in zip(ids, short, strict=True))
    expected = [h[-1].mean(0) for h in reference.hidden(ids, types=types)]
    assert deviation(encoder.encode(texts, prompt="word: ", pooling_layer=-1), expected) <= 1e-5
    tokens = encoder.encode([["the", "dog"]], pooling_layer=-1)
    assert deviation(encoder.encode([["the", "dog"]], prompt="word: ", pooling_layer=-1), tokens) <= 1e-6


# -- prompts that pooling leaves out -------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_prompt(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    target = tmp_path_factory.mktemp("without_prompt")
    pooling = Pooling(64, pooling_mode="mean", include_prompt=False)
    SentenceTransformer(modules=[Transformer(str(folder)), pooling], device="cpu").save(str(target))
    return Encoder(target, device="cpu", dtype="float32", max_seq_len=12)


def test_a_list_of_tokens_has_no_prompt_that_pooling_leaves_out(without_prompt: Encoder) -> None:
    tokens = [["the", "quick", "brown", "fox"]]
    assert deviation(without_prompt.encode(tokens, prompt="one two "), without_prompt.encode(tokens)) <= 1e-6


@pytest.mark.parametrize(("words", "first"), [(3, 3), (8, 3), (9, 2), (10, 1)])
def test_pooling_leaves_out_the_tokens_of_a_prompt_that_was_partly_cut(
    without_prompt: Encoder, reference: Reference, words: int, first: int
) -> None:
    text = " ".join([w for w in WORDS if len(w) > 1][:words])
    prompt = reference.words("five six ")
    cls, sep = reference.tokenizer.cls_token_id, reference.tokenizer.sep_token_id
    ids = [cls, *(prompt + reference.words(text))[-10:], sep]
    (hidden,) = reference.hidden([ids])
    expected = hidden[-1][first:].mean(0) if first > 1 else hidden[-1].mean(0)
    rows = without_prompt.encode([text], prompt="five six ", truncate="left")
    assert deviation(rows, [expected]) <= 1e-5


def test_tokens_of_a_prompt_are_counted_after_lower_casing(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save_pretrained(tmp_path)
    (text,) = Tokenizer(tmp_path, max_seq_len=12, do_lower_case=True)(["a"], prompt="XY ", pool_prompt=False)
    assert isinstance(text, TokenizedText)
    assert text.sequences[0].num_left_out == 3  # <s>, x and ##y; without lower-casing, XY is one unknown token


def test_cls_pooled_reads_cls_even_if_the_prompt_is_left_out(
    without_prompt: Encoder, reference: Reference
) -> None:
    (hidden,) = reference.hidden([reference.single("five six the dog")])
    rows = without_prompt.encode(["the dog"], prompt="five six ", pooling_strategy="CLS_POOLED")
    assert deviation(rows, [reference.pooled(hidden[-1][0])]) <= 1e-5


# -- options that are refused --------------------------------------------------------------------------


def test_the_error_for_a_layer_that_is_not_loaded_names_the_flag_that_loads_it(
    folder: Path, reference: Reference
) -> None:
    shallow = Encoder(folder, device="cpu", dtype="float32")
    for options in ({"pooling_layer": -1}, {"pooling_layer": [0, 2]}, {"pooling_strategy": "CLS_POOLED"}):
        with pytest.raises(ValueError, match="-all_layers"):
            shallow.encode(TEXTS, **options)  # type: ignore[arg-type]
    hidden = reference.hidden([reference.single(text) for text in TEXTS])
    assert deviation(shallow.encode(TEXTS, pooling_layer=0), [h[0].mean(0) for h in hidden]) <= 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling_layer": 3}, r"pooling_layer must be in -3\.\.2"),
        ({"pooling_layer": -4}, r"pooling_layer must be in -3\.\.2"),
        ({"pooling_layer": "1"}, "pooling_layer must be a whole number"),
        ({"pooling_layer": []}, "pooling_layer must be a whole number"),
        ({"pooling_layer": True}, "pooling_layer must be a whole number"),
        ({"dimensions": 65}, r"dimensions must be in 1\.\.64"),
        ({"dimensions": 129, "pooling_strategy": "REDUCE_MEAN_MAX"}, r"dimensions must be in 1\.\.128"),
        ({"dimensions": 0}, "dimensions must be a whole number from 1"),
        ({"dimensions": True}, "dimensions must be a whole number from 1"),
        ({"pooling_strategy": "NO_SUCH_STRATEGY"}, "pooling_strategy must be one of .*'NO_SUCH_STRATEGY'"),
        ({"pooling_strategy": ["NONE", "REDUCE_MEAN"]}, "NONE cannot be combined"),
        ({"pooling_strategy": []}, "pooling_strategy must be a name"),
        ({"normalize": 1}, "normalize must be true or false"),
        ({"pairs": None, "truncate": "middle"}, "truncate must be one of right, left, error"),
        ({"long_text": "window"}, "long_text must be one of"),
        ({"prompt": "a", "prompt_name": "b"}, "not both"),
        ({"prompt_name": "b"}, "prompt_name"),
        ({"prompt": "a\ud800"}, "prompt contains a lone surrogate"),
    ],
)
def test_the_error_names_an_invalid_option(encoder: Encoder, options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        encoder.encode(["a"], **options)


def test_the_error_names_an_unknown_option(encoder: Encoder) -> None:
    for call in (encoder.encode_tokens, lambda texts, **o: encoder.encode_spans(texts, [[(0, 1)]], **o)):
        with pytest.raises(ValueError, match="unknown option 'poolings'"):
            call(["a"], poolings="x")  # type: ignore[call-arg]


def test_a_string_in_place_of_a_list_is_refused(encoder: Encoder) -> None:
    for call in (encoder.encode, encoder.encode_tokens):
        with pytest.raises(TypeError, match="texts must be a list of strings, got str"):
            call("hello")


# -- requests in the same batch ------------------------------------------------------------------------

REQUESTS: list[dict[str, Any]] = [
    {},
    {"pooling_strategy": "NONE"},
    {"pooling_strategy": ["CLS_POOLED", "REDUCE_MAX"], "pooling_layer": 0},
    {"pooling_layer": [-1, 0], "normalize": True},
    {"dimensions": 5, "normalize": True},
    {"pooling_strategy": "WEIGHTED_MEAN", "prompt": "one two "},
    {"pooling_strategy": "LAST_TOKEN"},
    {"truncate": "left"},
    {"long_text": "chunk"},
    {"pooling_strategy": "NONE", "long_text": "chunk"},
    {"pairs": False},
    {"pooling_strategy": "MEAN_SQRT_LEN", "dimensions": 3},
]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("hides", [False, True])
def test_texts_of_different_requests_share_a_forward_pass(tmp_path: Path, family: str, hides: bool) -> None:
    folder = make_model(tmp_path, family)
    mine = Encoder(folder, device="cpu", dtype="float32", all_layers=True, max_seq_len=20, mask_cls_sep=hides)
    texts = [*TEXTS, "a dog ||| the fox", ["one", "two"]]
    prepared = [text for options in REQUESTS for text in mine.prepare(texts, options_from_json(options))]
    spans = [[(0, 3)], [(2, 7), (0, 1)]]
    for options in ({"pooling_strategy": "REDUCE_MEAN_MAX"}, {"normalize": True}):
        prepared += mine.prepare(TEXTS[:2], options_from_json(options), spans=spans)
    valid = [text for text in prepared if isinstance(text, PreparedText)]
    assert len(valid) == len(prepared)
    for text, result in zip(valid, mine.forward(valid), strict=True):
        (alone,) = mine.forward([text])
        assert not isinstance(result, EncodingError)
        assert not isinstance(alone, EncodingError)
        assert deviation(result, alone) <= 1e-5


@pytest.mark.parametrize(
    ("texts", "error", "complaint"),
    [
        ("hello", TypeError, "texts must be a list of strings, got str"),
        (None, TypeError, "texts must be a list of strings, got NoneType"),
        ([None], TypeError, r"texts\[0\] must be a string, a pair, or a list of tokens or ids, got None"),
        (
            ["a", ["b", 3]],
            TypeError,
            r"texts\[1\] must be a string, a pair, or a list of tokens or ids, got \['b', 3\]",
        ),
        (["a", "b\ud800"], ValueError, r"texts\[1\] contains a lone surrogate"),
        ([], ValueError, "texts must not be empty"),
    ],
)
def test_the_error_names_an_invalid_text(
    demo_model: Path, texts: object, error: type[Exception], complaint: str
) -> None:
    encoder = Encoder(demo_model, device="cpu")
    for encode in (encoder.encode, encoder.encode_tokens):
        with pytest.raises(error, match=complaint):
            encode(texts)  # type: ignore[arg-type, operator]


def test_texts_may_be_any_iterable_of_strings(demo_model: Path) -> None:
    encoder = Encoder(demo_model, device="cpu")
    expected = encoder.encode(["a", ""])
    for texts in (("a", ""), np.array(["a", ""]), iter(["a", ""])):
        assert np.abs(encoder.encode(texts) - expected).max() == 0  # type: ignore[arg-type]
