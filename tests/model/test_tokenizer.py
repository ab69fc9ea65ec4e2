"""A long text is tokenized only as far as needed. The ids are those of the whole text, cut after tokenizing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from bert_serving.protocol import EncodeOptions
from bert_serving.server.worker.excerpts import ReadingLimit, _beginning
from bert_serving.server.worker.long_strings import tokenize_strings
from bert_serving.server.worker.sequences import MAX_CHUNKED_TOKENS, RequestError, TokenizedText
from bert_serving.server.worker.sources import SourceString, split_text
from bert_serving.server.worker.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support.sentences import ODD, sentences

MAX_SEQ_LEN = 24


def _train(folder: Path, kind: str) -> Path:
    """Train a small tokenizer: byte-level BPE, which RoBERTa uses, or Unigram, which XLM-RoBERTa uses."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "byte-level BPE":
        rust = RustTokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        trainer: trainers.Trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials)
    else:
        rust = RustTokenizer(models.Unigram())
        rust.normalizer = normalizers.NFKC()
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=specials, unk_token="<unk>")
    rust.train_from_iterator(sentences(2000, seed=1), trainer)
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["WordPiece", "byte-level BPE", "Unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    if request.param == "WordPiece":
        return demo_model
    return _train(tmp_path_factory.mktemp("tokenizer"), request.param)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder, max_seq_len=MAX_SEQ_LEN)


@pytest.fixture(scope="module")
def whole(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


WORDS = st.sampled_from(
    [
        *ODD,
        "a",
        "hello",
        "embedding",
        "\u00a0",
        "\x1c",
        "\u3000",
        "e\u0301",
        "\n",
        "  ",
        "\t",
        "x" * 500,
        "-",
        "'s",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(WORDS, min_size=1, max_size=12), times=st.integers(1, 40), glue=st.sampled_from(["", " ", "\n"])
)
def test_a_long_text_has_the_ids_of_the_whole_text(
    tokenizer: Tokenizer, whole: PreTrainedTokenizerFast, words: list[str], times: int, glue: str
) -> None:
    text = glue.join(words * times)
    (mine,) = tokenizer([text])
    full = whole(text)["input_ids"]
    assert mine.ids == whole(text, truncation=True, max_length=MAX_SEQ_LEN)["input_ids"]
    assert mine.truncated == (len(full) > MAX_SEQ_LEN)


def test_a_giant_text_is_read_up_to_the_next_white_space() -> None:
    giant = "hello world embedding " * 1_000_000
    assert _beginning(giant, 100) == ("hello world embedding " * 5)[:109]
    assert _beginning("x" * 1000, 100) == "x" * 1000
    assert _beginning("short text", 100) == "short text"


def test_a_giant_text_has_the_ids_of_its_beginning(tokenizer: Tokenizer) -> None:
    giant = " ".join(random.Random(0).choices(["hello", "world", "embedding"], k=200_000))
    (mine,) = tokenizer([giant])
    assert (len(mine.ids), mine.truncated) == (MAX_SEQ_LEN, True)
    assert mine == tokenizer([giant[:10_000]])[0]


class _Counting:
    """Counts the characters that a tokenizer gets."""

    def __init__(self, rust: RustTokenizer) -> None:
        self.num_chars = 0
        self.encode_batch = self._counting(rust.encode_batch)
        self.encode_batch_fast = self._counting(rust.encode_batch_fast)

    def _counting(self, encode: Callable[..., list[Encoding]]) -> Callable[..., list[Encoding]]:
        def run(strings: list[str], **options: bool) -> list[Encoding]:
            self.num_chars += sum(map(len, strings))
            return encode(strings, **options)

        return run


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize("filler", [" ", "\u200b", "\n \t", "x", "x ", "\u0301"])
@pytest.mark.parametrize("num_tokens", [512, MAX_CHUNKED_TOKENS])
def test_a_bomb_of_any_characters_is_read_up_to_a_limit(
    demo_model: Path, filler: str, num_tokens: int, from_end: bool
) -> None:
    rust = RustTokenizer.from_file(str(demo_model / "tokenizer.json"))
    rust.no_truncation()
    counting, limit = _Counting(rust), ReadingLimit(num_tokens, from_end=from_end)
    bomb = filler * (20_000_000 // len(filler))
    sources = split_text(bomb, limit, prompt="", pairs=True, lower=False)
    (found,) = tokenize_strings(counting, sources, limit, with_offsets=False)  # type: ignore[arg-type]
    assert counting.num_chars <= 2 * limit.max_chars
    assert found.unread is not None


def test_a_text_that_was_not_read_completely_is_truncated(demo_model: Path) -> None:
    tokenizer = Tokenizer(demo_model, max_seq_len=MAX_SEQ_LEN)
    bomb = "hello" + " " * 3_000_000 + "world"
    for truncate, word in (("right", "hello"), ("left", "world")):
        (mine,) = tokenizer([bomb], EncodeOptions(truncate=truncate, show_offsets=True))
        assert isinstance(mine, TokenizedText)
        assert mine.truncated
        assert tokenizer.tokens(mine.ids) == ["[CLS]", word, "[SEP]"]
        assert mine.offsets == [(0, 0), (0, 5) if word == "hello" else (3_000_005, 3_000_010), (0, 0)]
        ((start, stop),) = mine.lost
        assert stop - start > 1_500_000
        assert (start == 0) == (truncate == "left")
    for options in (EncodeOptions(truncate="error"), EncodeOptions(long_text="chunk")):
        (error,) = tokenizer([bomb], options)
        assert isinstance(error, RequestError)
    (pair,) = tokenizer([{"text": "hello", "text_pair": bomb}])
    assert isinstance(pair, TokenizedText)
    assert (pair.truncated, len(pair.ids)) == (True, 5)


def test_lower_casing_reads_no_more_than_the_limit(demo_model: Path) -> None:
    """A character that becomes two needs a list of indices, which takes much memory."""
    limit = ReadingLimit(512)
    (source,) = split_text("\u0130 " * 2_000_000, limit, prompt="one ", pairs=False, lower=True)
    assert isinstance(source, SourceString)
    assert limit.max_chars <= len(source.original_indices or []) <= 2 * limit.max_chars
    assert source.unread is not None
    assert source.unread[1] == 4_000_000


def test_a_long_list_is_read_as_far_as_needed(tokenizer: Tokenizer) -> None:
    ids = list(range(10, 60))
    for truncate, kept in (("right", ids[: MAX_SEQ_LEN - 2]), ("left", ids[2 - MAX_SEQ_LEN :])):
        (mine,) = tokenizer([ids], EncodeOptions(truncate=truncate))
        assert isinstance(mine, TokenizedText)
        assert mine.truncated
        assert mine.ids[1:-1] == kept


def test_ids_are_accepted_with_or_without_special_tokens(
    tokenizer: Tokenizer, whole: PreTrainedTokenizerFast
) -> None:
    text = "hello world, embedding"
    for specials in (True, False):
        (mine,) = tokenizer([whole(text, add_special_tokens=specials)["input_ids"]])
        assert isinstance(mine, TokenizedText)
        assert mine.ids == whole(text)["input_ids"]


def test_ids_of_another_vocabulary_are_refused_and_the_error_says_what_to_do(tokenizer: Tokenizer) -> None:
    for foreign in (-1, tokenizer.num_ids, 10**12):
        (mine, other) = tokenizer([[5, foreign], [5]])
        assert isinstance(mine, RequestError)
        assert f"token id {foreign} is not in this model's vocabulary of {tokenizer.num_ids}" in str(mine)
        assert "check_embedding_ctx_length=False" in str(mine)
        assert isinstance(other, TokenizedText)


def test_a_pair_may_hold_any_characters(demo_model: Path) -> None:
    whole = AutoTokenizer.from_pretrained(demo_model)
    tokenizer = Tokenizer(demo_model, max_seq_len=64)
    (mine,) = tokenizer([{"text": "a ||| b\nc", "text_pair": "d ||| e"}])
    assert isinstance(mine, TokenizedText)
    expected = whole("a ||| b\nc", "d ||| e")
    assert (mine.ids, mine.sequences[0].type_ids) == (expected["input_ids"], expected["token_type_ids"])


@pytest.mark.parametrize("do_lower_case", [False, True])
def test_the_saved_tokenizer_gives_the_same_ids(tmp_path: Path, do_lower_case: bool) -> None:
    tokenizer = Tokenizer(_train(tmp_path, "Unigram"), max_seq_len=64, do_lower_case=do_lower_case)
    tokenizer.save(tmp_path / "saved.json")
    saved = RustTokenizer.from_file(str(tmp_path / "saved.json"))
    texts = ["Hello World", "EMBEDDING \u0130stanbul", "a </s> b"]
    for text, mine in zip(texts, tokenizer(texts), strict=True):
        assert isinstance(mine, TokenizedText)
        assert saved.encode(text).ids == mine.ids
