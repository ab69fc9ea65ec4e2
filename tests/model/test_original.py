"""Flags of bert-as-service give the vectors of bert-as-service, for several model families, packed and padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bert_serving.server.model.errors import ModelError
from bert_serving.server.worker.encoder import Encoder
from transformers import AutoModel, BertTokenizer

from tests.support.encoders import shared_encoder
from tests.support.reference import STRATEGIES, Array, Reference, deviation, layers_of, pool
from tests.support.tiny_models import FAMILIES, make_model

TEXTS = [
    "the dog",
    "a quick brown fox jumps over the lazy dog",
    "one",
    "Hello, world!",
    "the fox",
    "word and word",
    "one two three four five six " * 12,
    "unknown: %% qwertz",
    "東京 the 首都",
]
TOKENS = [["dog"], ["the", "##g", "NoSuch"], ["one", "two", "three", "four"] * 9]
LAYERS = [(-1,), (-2,), (0, -1), (-1, -3, 1)]
POOLERS = ["bert", "roberta", "albert", "mpnet"]
EMPTY = ["   ", "\u200b", "\x07\x1b", "\ufeff \u2060"]

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {family: Reference(folder) for family, folder in folders.items()}


def encoder(folder: Path, **options: object) -> Encoder:
    settings = {"device": "cpu", "dtype": "float32", "all_layers": True} | options
    return shared_encoder(folder, **settings)


def hidden_of(reference: Reference, texts: list[str] | list[list[str]]) -> list[Array]:
    return reference.hidden([reference.single(text) for text in texts])


# -- pooling -------------------------------------------------------------------------------------------


@every_family
def test_strategies_and_layers_equal_their_formulas(
    folders: dict[str, Path], references: dict[str, Reference], family: str
) -> None:
    mine, hidden = encoder(folders[family]), hidden_of(references[family], TEXTS)
    for name in STRATEGIES:
        for layers in LAYERS:
            rows = mine.encode(TEXTS, pooling_strategy=name, pooling_layer=layers)
            expected = [pool(name, layers_of(h, layers)) for h in hidden]
            assert deviation(rows, expected) <= 1e-5, (name, layers)


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategies_and_layers_can_be_set_at_load_time(
    folders: dict[str, Path], references: dict[str, Reference], name: str
) -> None:
    mine = encoder(folders["bert"], pooling_strategy=name, pooling_layer=[-2, 0], all_layers=False)
    expected = [pool(name, layers_of(h, [-2, 0])) for h in hidden_of(references["bert"], TEXTS)]
    assert deviation(mine.encode(TEXTS), expected) <= 1e-5
    assert mine.dimension == len(expected[0])


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_none_returns_every_token_and_zeros_after_the_end(
    folders: dict[str, Path], references: dict[str, Reference], family: str
) -> None:
    rows = encoder(folders[family], pooling_strategy="NONE", pooling_layer=[-1, 0]).encode(TEXTS)
    hidden = [layers_of(h, [-1, 0]) for h in hidden_of(references[family], TEXTS)]
    assert rows.shape == (len(TEXTS), max(map(len, hidden)), 128)
    for row, expected in zip(rows, hidden, strict=True):
        assert deviation(row[: len(expected)], expected) <= 1e-5
        assert not row[len(expected) :].any()


@pytest.mark.parametrize("family", POOLERS)
@pytest.mark.parametrize("layers", [[-1], [0], [-2, 0]])
def test_cls_pooled_always_reads_the_last_layer(
    folders: dict[str, Path], references: dict[str, Reference], family: str, layers: list[int]
) -> None:
    mine = encoder(folders[family], pooling_strategy="CLS_POOLED", pooling_layer=layers, all_layers=False)
    expected = [references[family].pooled(h[-1][0]) for h in hidden_of(references[family], TEXTS)]
    assert deviation(mine.encode(TEXTS), expected) <= 1e-5
    both = mine.encode(TEXTS, pooling_strategy=["REDUCE_MAX", "CLS_POOLED"])
    assert deviation(both[:, -64:], expected) <= 1e-5


def test_the_error_for_a_model_without_a_pooler_names_cls_pooled(folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folders["bert"], add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    Reference(folders["bert"]).tokenizer.save_pretrained(tmp_path)
    for folder in (tmp_path, folders["deberta-v2"]):
        with pytest.raises(ModelError, match="CLS_POOLED"):
            encoder(folder, pooling_strategy="CLS_POOLED")
        with pytest.raises(ValueError, match="CLS_POOLED"):
            encoder(folder).encode(["a"], pooling_strategy="CLS_POOLED")


# -- mask_cls_sep --------------------------------------------------------------------------------------


def hidden_without_specials(reference: Reference, texts: list[str]) -> tuple[list[Array], list[list[int]]]:
    """Return the hidden states of the texts, computed with masks that hide special tokens, and these masks."""
    ids = [reference.single(text) for text in texts]
    masks = [[0] + [1] * (len(i) - 2) + [0] for i in ids]
    # One text at a time, because fully masked rows in a padded batch of DeBERTa would attend to padding.
    return [reference.hidden([i], seen=[m])[0] for i, m in zip(ids, masks, strict=True)], masks


@every_family
def test_mask_cls_sep_hides_special_tokens_from_attention_and_pooling(
    folders: dict[str, Path], references: dict[str, Reference], family: str
) -> None:
    mine = encoder(folders[family], mask_cls_sep=True)
    hidden, masks = hidden_without_specials(references[family], TEXTS)
    for name in STRATEGIES:
        rows = mine.encode(TEXTS, pooling_strategy=name, pooling_layer=[-1, 0])
        expected = [pool(name, layers_of(h, [-1, 0]), m) for h, m in zip(hidden, masks, strict=True)]
        assert deviation(rows, expected) <= 1e-5, name
    plain = encoder(folders[family]).encode(TEXTS, pooling_layer=-1)
    assert deviation(mine.encode(TEXTS, pooling_layer=-1), plain) > 1e-2


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_mask_cls_sep_returns_special_tokens_with_zero_vectors(
    folders: dict[str, Path], references: dict[str, Reference], family: str
) -> None:
    mine = encoder(folders[family], mask_cls_sep=True)
    hidden, masks = hidden_without_specials(references[family], TEXTS)
    for result, h, mask in zip(mine.encode_tokens(TEXTS, pooling_layer=-1), hidden, masks, strict=True):
        assert deviation(result.vectors, h[-1] * np.array(mask)[:, None]) <= 1e-5
        assert (result.tokens[0], result.tokens[-1]) == ("<s>", "</s>")


@pytest.mark.parametrize("family", ["bert", "mpnet", "deberta-v2", "modernbert"])
def test_mask_cls_sep_gives_finite_vectors_for_texts_without_tokens(
    folders: dict[str, Path], references: dict[str, Reference], family: str
) -> None:
    mine = encoder(folders[family], mask_cls_sep=True)
    hidden, masks = hidden_without_specials(references[family], TEXTS)
    for name in STRATEGIES:
        rows = mine.encode([*EMPTY, *TEXTS], pooling_strategy=name, pooling_layer=-1)
        assert np.isfinite(rows).all()
        if "TOKEN" not in name:
            assert not rows[: len(EMPTY)].any()
        expected = [pool(name, h[-1], m) for h, m in zip(hidden, masks, strict=True)]
        assert deviation(rows[len(EMPTY) :], expected) <= 1e-5, name
    assert not mine.encode(EMPTY, pooling_strategy="NONE").any()


# -- the other flags -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "deberta-v2"])
def test_no_special_token_leaves_a_list_of_tokens_unchanged(
    folders: dict[str, Path], references: dict[str, Reference], family: str
) -> None:
    mine, reference = encoder(folders[family], no_special_token=True), references[family]
    bare = [reference.tokenizer.convert_tokens_to_ids(tokens) for tokens in TOKENS]
    string, pair = TEXTS[1], ["the", "dog", "|||", "fox"]
    words = reference.words("the dog"), reference.words("fox")
    ids, types = reference.pair(*words)
    takes_types = getattr(reference.model.config, "type_vocab_size", 0) > 1
    sequences = [*bare, reference.single(string), ids]
    all_types = [*([0] * len(s) for s in sequences[:-1]), types]
    hidden = reference.hidden(sequences, types=all_types if takes_types else None)
    for name in STRATEGIES:
        rows = mine.encode([*TOKENS, string, pair], pooling_strategy=name, pooling_layer=-1)
        assert deviation(rows, [pool(name, h[-1]) for h in hidden]) <= 1e-5, name
    assert mine.encode_tokens(TOKENS)[0].tokens == ["dog"]


def test_no_special_token_leaves_room_for_more_words(folders: dict[str, Path]) -> None:
    mine = encoder(folders["bert"], no_special_token=True, max_seq_len=5)
    (tokens,) = mine.encode_tokens([["one", "two", "three", "four", "five", "six"]])
    assert tokens.tokens == ["one", "two", "three", "four", "five"]


def test_mask_cls_sep_hides_nothing_of_a_list_without_special_tokens(
    folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    mine = encoder(folders["bert"], no_special_token=True, mask_cls_sep=True)
    hidden = references["bert"].hidden([references["bert"].tokenizer.convert_tokens_to_ids(t) for t in TOKENS])
    for name in STRATEGIES:
        rows = mine.encode(TOKENS, pooling_strategy=name, pooling_layer=-1)
        assert deviation(rows, [pool(name, h[-1]) for h in hidden]) <= 1e-5, name


def test_an_empty_list_is_refused_with_no_special_token(folders: dict[str, Path]) -> None:
    mine = encoder(folders["bert"], no_special_token=True)
    with pytest.raises(ValueError, match=r"texts\[1\].*no token"):
        mine.encode([["dog"], [], ["fox"]], pooling_strategy="CLS_TOKEN")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "mpnet"])
def test_no_position_embeddings_removes_them(folders: dict[str, Path], family: str) -> None:
    expected = [h[-2].mean(0) for h in hidden_of(Reference(folders[family], positions=False), TEXTS)]
    rows = encoder(folders[family], no_position_embeddings=True).encode(TEXTS)
    assert deviation(rows, expected) <= 1e-5
    assert deviation(encoder(folders[family]).encode(TEXTS), expected) > 1e-2


def test_no_position_embeddings_is_an_error_for_a_model_that_has_none(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no_position_embeddings"):
        encoder(folders["modernbert"], no_position_embeddings=True)


def test_cased_tokenization_keeps_case_and_accents(demo_model: Path) -> None:
    texts = ["Hello World", "naïve café, ÅNGSTRÖM", "lower words stay", "東京 IS big"]
    reference = Reference(demo_model)
    cased = BertTokenizer.from_pretrained(demo_model, do_lower_case=False)
    assert cased.tokenize("Hello world") == ["[UNK]", "world"]
    ids = [cased(text)["input_ids"] for text in texts]
    mine = encoder(demo_model, cased_tokenization=True, pooling_strategy="REDUCE_MEAN", pooling_layer=[-2])
    for result, i in zip(mine.encode_tokens(texts), ids, strict=True):
        assert result.tokens == cased.convert_ids_to_tokens(i)
    assert deviation(mine.encode(texts), [h[-2].mean(0) for h in reference.hidden(ids)]) <= 1e-5


def test_max_seq_len_none_allows_as_many_tokens_as_there_are_positions(
    demo_model: Path, folders: dict[str, Path]
) -> None:
    assert encoder(demo_model).max_seq_len == 256
    whole = encoder(demo_model, max_seq_len="NONE", pooling_strategy="REDUCE_MEAN", pooling_layer=[-1])
    assert whole.max_seq_len == 512
    texts = ["word " * 400, "two words"]
    reference = Reference(demo_model)
    expected = [h[-1].mean(0) for h in reference.hidden([reference.single(text) for text in texts])]
    assert deviation(whole.encode(texts), expected) <= 1e-5
    assert {encoder(folders[f], max_seq_len="NONE").max_seq_len for f in ("bert", "roberta", "mpnet")} == {512}
