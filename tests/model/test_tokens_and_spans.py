"""Token vectors with their offsets, vectors of spans, and long texts encoded in windows."""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bert_serving.protocol import EncodeOptions, options_from_json
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from tests.support.encoders import shared_encoder
from tests.support.reference import STRATEGIES, Array, Reference, deviation, pool
from tests.support.tiny_models import WORDS, make_model

SCRIPTS = [
    "Hello embedding world",
    "  Two\t spaces\n\nand lines ",
    "naïve café Zürich ÅNGSTRÖM",
    "e\u0301tude cafe\u0301",
    "東京は日本の首都です。",
    "混ぜ mixed 文字 text",
    "👍🏽 thumbs 🎉🎉 up",
    "مرحبا بالعالم",
    "שָׁלוֹם עולם",
    "Привет, как дела?",
    "a\u200bb zero\ufeffwidth",
    "x" * 120 + " y",
    "tail\u00a0nbsp",
    "\x07bell\x00 and nul",
    "ﬁne ligature ½",
    "   ",
]
CHUNK = {"long_text": "chunk"}


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Encoder:
    return Encoder(demo_model, device="cpu", dtype="float32", pooling_strategy="REDUCE_MEAN", pooling_layer=[-1])


@pytest.fixture(scope="module")
def demo_reference(demo_model: Path) -> Reference:
    return Reference(demo_model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def encoder(folder: Path, **options: object) -> Encoder:
    settings = {"device": "cpu", "dtype": "float32", "pooling_layer": [-1]} | options
    return shared_encoder(folder, **settings)


def plain(text: str) -> str:
    """Return a word as an uncased BERT normalizes it: in lower case, without accents."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cc", "Cf"))


# -- tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SCRIPTS, ids=ascii)
def test_tokens_vectors_and_offsets_match(demo: Encoder, demo_reference: Reference, text: str) -> None:
    (result,) = demo.encode_tokens([text])
    ids = demo_reference.single(text)
    assert result.tokens == demo_reference.tokenizer.convert_ids_to_tokens(ids)
    assert deviation(result.vectors, demo_reference.hidden([ids])[0][-1]) <= 1e-5
    assert result.offsets is not None
    assert result.offsets[0] == result.offsets[-1] == (0, 0)
    for token, (start, end) in list(zip(result.tokens, result.offsets, strict=True))[1:-1]:
        assert 0 <= start < end <= len(text)
        if token != "[UNK]":
            assert plain(text[start:end]) == token.removeprefix("##")


def test_texts_that_come_as_tokens_have_no_offsets(demo: Encoder) -> None:
    results = demo.encode_tokens([["hello", "world"], "hello world", ["a", "|||", "b"]])
    assert [result.offsets is None for result in results] == [True, False, True]
    assert results[2].tokens == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]


def test_offsets_count_from_the_text_and_not_from_the_prompt(demo: Encoder) -> None:
    text = "Hello world"
    (result,) = demo.encode_tokens([text], prompt="query: ")
    assert result.tokens[1:] == ["query", ":", "hello", "world", "[SEP]"]
    assert result.offsets == [(0, 0), (0, 0), (0, 0), (0, 5), (6, 11), (0, 0)]


def test_offsets_are_right_when_a_very_long_text_is_cut_on_the_left(folder: Path) -> None:
    text = "word " * 9000 + "One quick fox"
    (result,) = encoder(folder, max_seq_len=5).encode_tokens([text], truncate="left")
    assert result.offsets is not None
    assert [text[a:b] for a, b in result.offsets] == ["", "One", "quick", "fox", ""]


def test_offsets_are_right_when_lower_casing_makes_a_text_longer(folder: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(folder), do_lower_case=True), Pooling(64)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    text = "İİ Dog İ fox"
    for options in ({}, {"prompt": "İ one "}):
        (result,) = Encoder(tmp_path, device="cpu", dtype="float32").encode_tokens([text], **options)
        assert result.offsets is not None
        words = [text[a:b] for a, b in result.offsets if b > a]
        assert (words[-1], words[-2], "Dog" in words) == ("fox", "İ", True)


# -- spans ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data(), words=st.lists(st.sampled_from([*WORDS, "xyz", "a,b"]), min_size=1, max_size=30))
def test_a_span_is_pooled_from_the_tokens_that_it_overlaps(
    folder: Path, reference: Reference, data: st.DataObject, words: list[str]
) -> None:
    text = "  ".join(words)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    mine = encoder(folder)
    (result,) = mine.encode_tokens([text])
    overlapping = [i for i, (a, b) in enumerate(result.offsets or []) if b > a and a < end and b > start]
    if not overlapping:
        with pytest.raises(ValueError, match=rf"texts\[0\]: span \[{start}, {end}\] contains no token"):
            mine.encode_spans([text], [[(start, end)]])
        return
    (hidden,) = reference.hidden([reference.single(text)])
    rows = mine.encode_spans([text], [[(start, end), (0, len(text))]], pooling_strategy=STRATEGIES)[0]
    assert rows.shape == (2, 64 * 10)
    for row, tokens in zip(
        rows, (hidden[-1][overlapping[0] : overlapping[-1] + 1], hidden[-1][1:-1]), strict=True
    ):
        assert deviation(row, np.concatenate([pool(name, tokens) for name in STRATEGIES])) <= 1e-5


def test_the_error_names_a_span_that_cannot_be_encoded(folder: Path) -> None:
    mine = encoder(folder, max_seq_len=6)
    text = "one two three four five six"
    for span, said in {
        (0, 28): r"span \[0, 28\] ends after the text, which has 27 characters",
        (24, 27): r"span \[24, 27\] lies in the part of the text that was cut off; see the option long_text",
        (15, 22): r"span \[15, 22\] lies in the part",
        (3, 4): r"span \[3, 4\] contains no token",
    }.items():
        with pytest.raises(ValueError, match=r"texts\[1\]: " + said):
            mine.encode_spans(["one", text], [[(0, 3)], [(0, 3), span]])
    with pytest.raises(ValueError, match=r"span \[0, 3\] lies in the part"):
        mine.encode_spans([text], [[(0, 3)]], truncate="left")
    with pytest.raises(ValueError, match="must be a string"):
        mine.encode_spans([["one", "two"]], [[(0, 3)]])  # type: ignore[list-item]


def test_the_error_names_a_span_in_the_cut_part_of_a_pair(folder: Path) -> None:
    mine = encoder(folder, max_seq_len=7)
    text = "one two three four ||| five six word and"
    assert mine.encode_tokens([text])[0].tokens == ["<s>", "one", "two", "</s>", "five", "six", "</s>"]
    for span in ((8, 13), (4, 13), (28, 36)):
        with pytest.raises(ValueError, match=r"lies in the part of the text that was cut"):
            mine.encode_spans([text], [[span]])
    assert mine.encode_spans([text], [[(0, 7), (23, 31)]])[0].shape == (2, 64)


@pytest.mark.parametrize("spans", [[], [[(0, 1)]], [[(0, 1)], []], [[(0, 1)], [(-1, 2)]], [[(0, 1)], [(2, 1)]]])
def test_invalid_spans_are_refused(folder: Path, spans: list[list[tuple[int, int]]]) -> None:
    with pytest.raises(ValueError, match="spans"):
        encoder(folder).encode_spans(["one", "two"], spans)


@pytest.mark.parametrize("name", ["NONE", "CLS_POOLED"])
def test_spans_are_refused_for_strategies_that_do_not_pool_tokens(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"must not be {name}"):
        encoder(folder).encode_spans(["one"], [[(0, 1)]], pooling_strategy=name)


# -- long texts ----------------------------------------------------------------------------------------


def long_text(num_chars: int) -> str:
    rng = np.random.default_rng(num_chars)
    words = [w for w in WORDS if len(w) > 1]
    return " ".join(rng.choice(words, size=num_chars // 2))[: num_chars - 4] + " fox"


def windows_of(mine: Encoder, text: str) -> list[list[int]]:
    (prepared,) = mine.prepare([text], options_from_json(CHUNK))
    assert isinstance(prepared, PreparedText)
    return [sequence.ids for sequence in prepared.text.sequences]


def starts_of(windows: list[list[int]], words: list[int]) -> list[int]:
    """Return the index of the token in the whole text at which each window begins.

    Checks that the windows are evenly spaced, and that neighbors overlap by at least 1/8 of a window.
    """
    size = len(windows[0]) - 2
    count = int(np.ceil((len(words) - size // 8) / (size - size // 8)))
    starts = [round(Fraction(i * (len(words) - size), max(1, count - 1))) for i in range(count)]
    assert [window[1:-1] for window in windows] == [words[start : start + size] for start in starts]
    return starts


def borders_of(windows: list[list[int]], words: list[int]) -> list[int]:
    """Return the index of the first token that each window keeps, and the number of all tokens at the end."""
    starts = starts_of(windows, words)
    stops = [start + len(w) - 2 for start, w in zip(starts, windows, strict=True)]
    return [0, *((stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)), len(words)]


@pytest.mark.parametrize("max_seq_len", [3, 4, 10, 64, 512])
def test_vector_of_a_long_text_is_the_weighted_mean_over_its_windows(
    folder: Path, reference: Reference, max_seq_len: int
) -> None:
    mine, text = encoder(folder, max_seq_len=max_seq_len), long_text(600 if max_seq_len < 512 else 9000)
    windows, words = windows_of(mine, text), reference.words(text)
    starts = starts_of(windows, words)
    assert (starts[0], starts[-1]) == (0, len(words) - max_seq_len + 2)
    assert all(after <= before + max_seq_len - 2 for before, after in pairwise(starts))
    hidden = reference.hidden(windows)
    for name in STRATEGIES:
        rows = np.stack([pool(name, h[-1]) for h in hidden])
        weights = np.diff(borders_of(windows, words))
        expected = (rows * weights[:, None]).sum(0) / weights.sum()
        assert deviation(mine.encode([text], pooling_strategy=name, **CHUNK), [expected]) <= 1e-5, name


@settings(max_examples=20, deadline=None)
@given(num_chars=st.integers(10, 2000), max_seq_len=st.sampled_from([3, 5, 12, 40]))
def test_every_token_of_a_long_text_is_returned_once(
    folder: Path, reference: Reference, num_chars: int, max_seq_len: int
) -> None:
    text = long_text(num_chars)
    mine = encoder(folder, max_seq_len=max_seq_len)
    (result,) = mine.encode_tokens([text], **CHUNK)
    whole = reference.tokenizer(text, return_offsets_mapping=True, verbose=False)
    assert result.tokens == reference.tokenizer.convert_ids_to_tokens(whole["input_ids"])
    assert result.offsets == whole["offset_mapping"]
    windows = windows_of(mine, text)
    assert deviation(result.vectors, kept_rows(reference, windows, reference.words(text))) <= 1e-5


def kept_rows(reference: Reference, windows: list[list[int]], words: list[int]) -> Array:
    """Return the vector of each token.

    If a token is in two windows, its vector comes from the window in which the token is further from the border.
    If both distances are equal, the vector comes from the later window.
    """
    starts, hidden = starts_of(windows, words), reference.hidden(windows)
    borders = borders_of(windows, words)
    rows = [
        h[-1][1 + a - start : 1 + b - start]
        for h, start, (a, b) in zip(hidden, starts, pairwise(borders), strict=True)
    ]
    return np.concatenate([hidden[0][-1][:1], *rows, hidden[-1][-1][-1:]])


def test_a_text_of_100000_characters_is_read_to_its_end(folder: Path, reference: Reference) -> None:
    mine, text = encoder(folder), long_text(100_000)
    other = text[:-3] + "dog"
    rows = mine.encode([text, other, text], **CHUNK)
    assert np.abs(rows[0] - rows[1]).max() > 1e-5
    assert deviation(rows[0], rows[2]) <= 1e-6
    assert np.array_equal(*mine.encode([text, other]))
    (result,) = mine.encode_tokens([text], **CHUNK)
    whole = reference.tokenizer(text, return_offsets_mapping=True, verbose=False)
    assert len(result.tokens) == len(whole["input_ids"]) > 15_000
    assert result.offsets == whole["offset_mapping"]


@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_window_of_a_long_text_begins_with_the_prompt(
    folder: Path, reference: Reference, tmp_path: Path, include_prompt: bool
) -> None:
    pooling = Pooling(64, pooling_mode="mean", include_prompt=include_prompt)
    SentenceTransformer(modules=[Transformer(str(folder)), pooling], device="cpu").save(str(tmp_path))
    mine = Encoder(tmp_path, device="cpu", dtype="float32", max_seq_len=12)  # 2 special tokens, 2 of the prompt
    words = reference.words("the quick brown fox jumps over the lazy dog hello world one two three four")
    cls, sep, prompt = (
        reference.tokenizer.cls_token_id,
        reference.tokenizer.sep_token_id,
        reference.words("five six"),
    )
    # Two windows of 8 of the 15 tokens. The token that both hold, number 7, is kept in the second.
    windows = [[cls, *prompt, *words[start : start + 8], sep] for start in (0, 7)]
    first = 0 if include_prompt else 3
    rows = [h[-1][first:].mean(0) for h in reference.hidden(windows)]
    text = reference.tokenizer.decode(words)
    expected = (7 * rows[0] + 8 * rows[1]) / 15
    assert deviation(mine.encode([text], prompt="five six ", **CHUNK), [expected]) <= 1e-5
    (result,) = mine.encode_tokens([text], prompt="five six ", **CHUNK)
    whole = [cls, *prompt, *words, sep]
    assert result.tokens == reference.tokenizer.convert_ids_to_tokens(whole)
    assert result.offsets is not None
    assert [text[a:b] for a, b in result.offsets[3:-1]] == text.split()


def test_a_prompt_of_more_than_half_a_window_is_refused_with_chunk(folder: Path) -> None:
    mine, text = encoder(folder, max_seq_len=12), long_text(200)
    assert mine.encode([text], prompt="one two three four five ", **CHUNK).shape == (1, 64)
    with pytest.raises(ValueError, match="a prompt may have at most 5 tokens, half of a window, got 6"):
        mine.encode([text], prompt="one two three four five six ", **CHUNK)


def test_spans_may_exceed_max_seq_len_with_chunk(folder: Path) -> None:
    mine, text = encoder(folder), long_text(20_000)
    spans = [(0, 5), (9_990, 10_030), (19_997, 20_000), (0, 20_000)]
    with pytest.raises(ValueError, match="see the option long_text"):
        mine.encode_spans([text], [spans])
    (rows,) = mine.encode_spans([text], [spans], **CHUNK)
    (result,) = mine.encode_tokens([text], **CHUNK)
    for row, (start, end) in zip(rows, spans, strict=True):
        of = [i for i, (a, b) in enumerate(result.offsets or []) if b > a and a < end and b > start]
        assert deviation(row, result.vectors[of].mean(0, dtype=np.float64)) <= 1e-5


def test_chunk_changes_nothing_for_a_text_that_fits(folder: Path) -> None:
    mine = encoder(folder)
    assert np.array_equal(
        mine.encode(["the dog ||| a fox", "one two"], **CHUNK), mine.encode(["the dog ||| a fox", "one two"])
    )
    assert EncodeOptions(**CHUNK) != EncodeOptions()


def test_a_text_longer_than_chunk_reads_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="long_text chunk reads at most 131072 tokens and 2097152 characters"):
        encoder(folder).encode(["a " * 140_000], **CHUNK)
