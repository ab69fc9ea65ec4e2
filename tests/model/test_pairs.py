"""Sentence pairs: which texts become pairs, how a long pair is cut, and which type ids a pair gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.micro_batches import PreparedText
from bert_serving.server.worker.sequences import RequestError
from bert_serving.server.worker.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.encoders import shared_encoder
from tests.support.reference import STRATEGIES, Reference, deviation, pool
from tests.support.tiny_models import WORDS, make_model

FAMILIES = {
    "bert": {},
    "roberta": {},
    "albert": {},
    "nomic_bert": {},
    "deberta-v2": {"type_vocab_size": 2},
}
STRINGS = [
    "the dog ||| a fox",
    "one ||| two ||| three",
    "the dog|||a fox",
    "the dog ||| ",
    " ||| a fox",
    "|||",
    " ||| ",
    "the\ndog ||| a fox",
    "the dog ||| a fox\n",
    "\n the dog ||| a fox",
    "the dog ||| a\nfox",
    "one\r||| two",
    "  the dog   |||   a fox  ",
    "one |||| two",
    "one ||| ||| two",
    "one ||| ||| ",
    "\x1cone ||| two\x1d",
    "one ||| \u200b",
    "\u200b ||| two",
    "\u200b ||| \u200b",
    "a\u2028b ||| c",
    "plain",
]
LISTS = [
    ["the", "dog", "|||", "fox"],
    ["the", "|||", "dog", "|||", "fox"],
    ["|||", "fox"],
    ["fox", "|||"],
    ["|||"],
    ["the", "dog"],
    ["a ||| b"],
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {f: make_model(tmp_path_factory.mktemp(f), f, **options) for f, options in FAMILIES.items()}


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> Reference:
    return Reference(folders["bert"])


def encoder(folder: Path, **options: object) -> Encoder:
    settings = {"device": "cpu", "dtype": "float32", "pooling_layer": [-1]} | options
    return shared_encoder(folder, **settings)


def original(reference: Reference, text: str | list[str], *, longest: int = 512) -> tuple[list[int], list[int]]:
    """Return the ids and type ids of bert-as-service's read_examples and convert_lst_to_features."""
    if isinstance(text, str):
        match = re.match(r"^(.*) \|\|\| (.*)$", text.strip())
        first, second = match.groups() if match else (text, "")
        a, b = reference.words(first), reference.words(second) if match else []
    else:
        at = text.index("|||") if "|||" in text else len(text)
        a, b = map(reference.tokenizer.convert_tokens_to_ids, (text[:at], text[at + 1 :]))
    a, b = list(a), list(b)
    is_pair = bool(b)
    while is_pair and len(a) + len(b) > longest - 3:
        (a if len(a) > len(b) else b).pop()
    if b:
        return reference.pair(a, b, longest=longest)
    ids = [reference.tokenizer.cls_token_id, *a[: longest - 2], reference.tokenizer.sep_token_id]
    return ids, [0] * len(ids)


def sequence_of(mine: Encoder, text: str | list[str]) -> tuple[list[int], list[int]]:
    (prepared,) = mine.prepare([text])
    assert isinstance(prepared, PreparedText)
    (sequence,) = prepared.text.sequences
    return sequence.ids, sequence.type_ids or [0] * len(sequence.ids)


@pytest.mark.parametrize("text", [*STRINGS, *LISTS], ids=ascii)
def test_the_same_texts_are_pairs_as_in_bert_as_service(
    folders: dict[str, Path], reference: Reference, text: str | list[str]
) -> None:
    assert sequence_of(encoder(folders["bert"]), text) == original(reference, text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("a |\n\t\u00a0\u200b"), min_size=1, max_size=12))
def test_any_string_of_bars_and_spaces_is_split_as_in_bert_as_service(
    folders: dict[str, Path], reference: Reference, text: str
) -> None:
    ids = Tokenizer(folders["bert"], max_seq_len=512)([text])[0].ids  # type: ignore[union-attr]
    assert ids == original(reference, text)[0]


@settings(max_examples=200, deadline=None)
@given(first=st.integers(0, 40), second=st.integers(0, 40), longest=st.integers(3, 24), is_tokenized=st.booleans())
def test_a_pair_is_cut_by_removing_tokens_from_the_longer_string(
    folders: dict[str, Path], reference: Reference, first: int, second: int, longest: int, is_tokenized: bool
) -> None:
    words = [word for word in WORDS if len(word) > 1]
    a, b = (words * 3)[:first], (words[::-1] * 3)[:second]
    text = [*a, "|||", *b] if is_tokenized else f"{' '.join(a)} ||| {' '.join(b)}"
    (found,) = Tokenizer(folders["bert"], max_seq_len=longest)([text])
    ids, types = original(reference, text, longest=longest)
    assert not isinstance(found, RequestError)
    assert found.ids == ids
    assert (found.sequences[0].type_ids or [0] * len(ids)) == types


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 40), second=st.integers(1, 40), longest=st.integers(5, 24))
def test_a_pair_cut_on_the_left_keeps_as_many_tokens_as_one_cut_on_the_right(
    folders: dict[str, Path], first: int, second: int, longest: int
) -> None:
    from bert_serving.protocol import EncodeOptions

    tokenizer = Tokenizer(folders["bert"], max_seq_len=longest)
    forth = [*(["one", "two", "three"] * 14)[:first], "|||", *(["four", "five"] * 20)[:second]]
    at = forth.index("|||")
    back = [*forth[:at][::-1], "|||", *forth[at + 1 :][::-1]]
    (right,), (left,) = tokenizer([back]), tokenizer([forth], EncodeOptions(truncate="left"))
    assert not isinstance(right, RequestError)
    assert not isinstance(left, RequestError)
    size = next((i for i, t in enumerate(right.sequences[0].type_ids or []) if t), len(right.ids))
    parts = right.ids[1 : size - 1], right.ids[size:-1]
    cls, sep = right.ids[0], right.ids[-1]
    assert left.ids == [cls, *parts[0][::-1], sep, *([*parts[1][::-1], sep] if size < len(right.ids) else [])]


@pytest.mark.parametrize("family", FAMILIES)
def test_type_ids_reach_the_model(folders: dict[str, Path], family: str) -> None:
    mine, reference = encoder(folders[family]), Reference(folders[family])
    assert (mine.padded_because is not None) == (family == "deberta-v2")
    texts = [
        "the dog ||| a fox",
        "one two three",
        "a ||| quick brown fox jumps over",
        "word ||| word",
        "word word",
    ]
    ids, types = zip(*(original(reference, text) for text in texts), strict=True)
    hidden = reference.hidden(ids, types=types)
    for name in STRATEGIES:
        rows = mine.encode(texts, pooling_strategy=name)
        assert deviation(rows, [pool(name, h[-1]) for h in hidden]) <= 1e-5, name
    without = reference.hidden(ids, types=[[0] * len(i) for i in ids])
    assert deviation(mine.encode(texts[:1]), [without[0][-1].mean(0)]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_cls_sep_hides_all_three_special_tokens_of_a_pair(folders: dict[str, Path], family: str) -> None:
    mine, reference = encoder(folders[family], mask_cls_sep=True), Reference(folders[family])
    texts = ["the dog ||| a fox", "one two three", "a ||| quick brown fox jumps over"]
    ids, types = zip(*(original(reference, text) for text in texts), strict=True)
    specials = {reference.tokenizer.cls_token_id, reference.tokenizer.sep_token_id}
    masks = [[int(i not in specials) for i in sequence] for sequence in ids]
    # One pair at a time, because fully masked rows in a padded batch of DeBERTa would attend to padding.
    hidden = [reference.hidden([i], types=[t], seen=[m])[0] for i, t, m in zip(ids, types, masks, strict=True)]
    for name in STRATEGIES:
        rows = mine.encode(texts, pooling_strategy=name)
        expected = [pool(name, h[-1], mask) for h, mask in zip(hidden, masks, strict=True)]
        assert deviation(rows, expected) <= 1e-5, name


def test_with_pairs_false_the_separator_is_ordinary_text(folders: dict[str, Path], reference: Reference) -> None:
    mine, texts = encoder(folders["bert"]), ["the dog ||| a fox", "a ||| b ||| c"]
    expected = [h[-1].mean(0) for h in reference.hidden([reference.single(text) for text in texts])]
    assert deviation(mine.encode(texts, pairs=False), expected) <= 1e-5
    tokens = mine.encode_tokens([["the", "|||", "dog"]], pairs=False)[0].tokens
    assert tokens == ["<s>", "the", "<unk>", "dog", "</s>"]


def test_offsets_of_a_pair_count_from_the_beginning_of_the_text(folders: dict[str, Path]) -> None:
    text = "  The DOG  |||  a Fox "
    (result,) = encoder(folders["bert"]).encode_tokens([text])
    assert result.offsets is not None
    assert [text[start:end].lower() for start, end in result.offsets] == ["", "the", "dog", "", "a", "fox", ""]


def test_truncate_error_refuses_a_long_pair_even_with_chunk(folders: dict[str, Path]) -> None:
    mine = encoder(folders["bert"], max_seq_len=8)
    for long_text in ("truncate", "chunk"):
        with pytest.raises(ValueError, match="a text may have at most 5 tokens"):
            mine.encode(["one two three ||| four five six"], truncate="error", long_text=long_text)


def test_a_pair_for_which_there_is_no_room_has_the_special_tokens_of_a_single_text(tmp_path: Path) -> None:
    """A pair has four special tokens in RoBERTa, but max_seq_len is 3 here."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path, "roberta"))
    specials = [("<s>", tokenizer.cls_token_id), ("</s>", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=specials
    )
    tokenizer.save_pretrained(tmp_path)
    (result,) = encoder(tmp_path, max_seq_len=3).encode_tokens(["one two ||| three four"])
    assert result.tokens == ["<s>", "</s>"]
