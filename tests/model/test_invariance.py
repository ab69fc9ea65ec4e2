"""A text's vector depends on that text only, not on other texts, their order, or how batches are split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bert_serving.server.worker.encoder import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from tests.support.reference import Array, Reference, deviation
from tests.support.tiny_models import WORDS, make_model

UNUSUAL = [
    " ",
    "\t\n",
    "\x07\x08\x1b",
    "\u200b\u200d\u2060",
    "\ufeff",
    "\u00ad",
    "\u202e\u202c",
    "\u3042\U00020000",
    "\U0001d54f\U0001d550",
    "👍🏽🎉",
    "👩\u200d👩\u200d👧\u200d👦",
    "🇩🇪🇯🇵",
    "東京都",
    "한국어",
    "हिन्दी",
    "ไทย",
    "مرحبا بالعالم",
    "שָׁלוֹם",
    "a\u0301\u0302\u0303",
    "\ud7ff\ue000",
    "\U0010ffff",
    "ﷺ",
    "ß ẞ \u0131 İ",
    "½ ² Ⅷ ﬁ",
    "[UNK] [MASK]",
    "[PAD] [PAD]",
    "[CLS]",
    "%%%%",
    "x" * 99 + " " + "x" * 101,
    "-" * 600,
    "a" + "\u0301" * 300,
]
#: Texts of 1 to 37 words.
POOL = [" ".join(random.Random(i).choices(WORDS, k=1 + i % 37)) for i in range(80)]
COMBINED = {"pooling_strategy": ["REDUCE_MEAN", "REDUCE_MAX", "LAST_TOKEN", "WEIGHTED_MEAN"]}

some_texts = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=40)


class Case:
    """An encoder, and the vectors of the texts of POOL, each encoded alone."""

    def __init__(self, folder: Path, dtype: str, **options: bool) -> None:
        self.encoder = Encoder(folder, device="cpu", dtype=dtype, pooling_layer=[-1], **options)  # type: ignore[arg-type]
        self.dtype = dtype
        self.alone = np.concatenate([self.encoder.encode([text], **COMBINED) for text in POOL])

    def check(self, rows: Array, indices: Sequence[int]) -> None:
        expected = self.alone[list(indices)]
        if self.dtype == "float32":
            assert deviation(rows, expected) <= 1e-5
        parts = (np.split(of, len(COMBINED["pooling_strategy"]), axis=1) for of in (rows, expected))
        for mine, right in zip(*parts, strict=True):
            assert cosines(mine, right).min() >= 0.9999

    def encode(self, indices: Sequence[int]) -> Array:
        return self.encoder.encode([POOL[i] for i in indices], **COMBINED)


def cosines(a: Array, b: Array) -> Array:
    product: Array = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return product


@pytest.fixture(
    scope="module",
    params=[("bert", "float32"), ("bert", "bfloat16"), ("mpnet", "float32"), ("modernbert", "float32"),
            ("modernbert", "bfloat16"), ("deberta-v2", "float32")],
    ids=" ".join,
)  # fmt: skip
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, dtype = request.param
    return Case(make_model(tmp_path_factory.mktemp(family), family), dtype)


@settings(max_examples=15, deadline=None)
@given(indices=some_texts, seed=st.randoms(use_true_random=False))
def test_order_and_other_texts_change_no_vector(case: Case, indices: list[int], seed: random.Random) -> None:
    case.check(case.encode(indices), indices)
    shuffled = seed.sample(indices, len(indices))
    case.check(case.encode(shuffled), shuffled)


@settings(max_examples=10, deadline=None)
@given(indices=some_texts, at=st.integers(0, 40))
def test_splitting_a_batch_changes_no_vector(case: Case, indices: list[int], at: int) -> None:
    parts = [part for part in (indices[:at], indices[at:]) if part]
    case.check(np.concatenate([case.encode(part) for part in parts]), indices)


@settings(max_examples=10, deadline=None)
@given(indices=some_texts, budget=st.sampled_from([1, 7, 64, 300]))
def test_the_size_of_a_micro_batch_changes_no_vector(case: Case, indices: list[int], budget: int) -> None:
    before = case.encoder._budget.tokens
    case.encoder._budget.tokens = budget
    try:
        case.check(case.encode(indices), indices)
    finally:
        case.encoder._budget.tokens = before


def test_with_mask_cls_sep_a_vector_does_not_depend_on_other_texts(tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "bert"), "float32", mask_cls_sep=True)
    case.check(case.encode(range(len(POOL))), range(len(POOL)))


@pytest.mark.parametrize("size", [1, 2, 3, 31, 32, 33, 300])
def test_a_batch_of_any_size_equals_transformers(tmp_path: Path, size: int) -> None:
    folder = make_model(tmp_path, "bert")
    rng, reference = random.Random(size), Reference(folder)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(size)]
    expected = [h[-1].mean(0) for h in reference.hidden([reference.single(text) for text in texts])]
    mine = Encoder(folder, device="cpu", dtype="float32", pooling_layer=[-1])
    assert deviation(mine.encode(texts), expected) <= 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "mpnet"])
def test_a_sequence_of_any_length_equals_transformers(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path, family)
    reference = Reference(folder)
    mine = Encoder(folder, device="cpu", dtype="float32", pooling_layer=[-1], no_special_token=True)
    words = [word for word in WORDS if len(word) > 1]
    lengths = [1, 2, 3, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512]
    texts = [random.Random(length).choices(words, k=length) for length in lengths]
    ids = [reference.tokenizer.convert_tokens_to_ids(text) for text in texts]
    expected = [h[-1].mean(0) for h in reference.hidden(ids)]
    assert deviation(mine.encode(texts), expected) <= 1e-5


# -- unusual texts with the demo model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(demo_model: Path) -> SentenceTransformer:
    return SentenceTransformer(str(demo_model), device="cpu")


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Encoder:
    return Encoder(demo_model, device="cpu", dtype="float32")


@pytest.mark.parametrize("text", UNUSUAL, ids=ascii)
def test_an_unusual_text_has_the_vector_of_sentence_transformers(
    demo: Encoder, theirs: SentenceTransformer, text: str
) -> None:
    assert deviation(demo.encode([text]), theirs.encode([text])) <= 1e-5


def test_unusual_texts_have_the_same_vectors_in_one_batch(demo: Encoder, theirs: SentenceTransformer) -> None:
    assert deviation(demo.encode(UNUSUAL), theirs.encode(UNUSUAL)) <= 1e-5


def test_unusual_texts_in_bfloat16_have_nearly_the_same_vectors(
    demo_model: Path, theirs: SentenceTransformer
) -> None:
    rows = Encoder(demo_model, device="cpu", dtype="bfloat16").encode(UNUSUAL)
    assert cosines(rows, theirs.encode(UNUSUAL)).min() >= 0.9999


MEGABYTES = ["x" * 1_000_000, "東" * 350_000, "word " * 200_000, " " * 1_000_000 + "end"]
MEGABYTES += ["\u200b" * 350_000, "a" + "\u0301" * 500_000]


@pytest.mark.parametrize("text", MEGABYTES, ids=lambda text: ascii(text[-1]))
def test_a_megabyte_of_one_character_or_word_has_the_right_vector(
    demo: Encoder, theirs: SentenceTransformer, text: str
) -> None:
    assert deviation(demo.encode([text, "fine"]), theirs.encode([text, "fine"])) <= 1e-5


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_has_the_vector_of_sentence_transformers(
    demo: Encoder, theirs: SentenceTransformer, text: str
) -> None:
    expected = theirs.encode([text])
    assert deviation(demo.encode([text], pairs=False), expected) <= 1e-5
