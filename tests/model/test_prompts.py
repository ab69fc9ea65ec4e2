"""Vectors with a prompt equal those of sentence-transformers, whether pooling includes the prompt or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bert_serving.server.worker.encoder import Encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from tests.support.sentences import sentences
from tests.support.tiny_models import make_model

TEXTS = sentences(40)
PROMPTS = {"query": "the query: ", "passage": "fox jumps over "}
MODES = ["mean", "max", "cls", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), "bert")


def save(folder: Path, body: Path, mode: str, *, include_prompt: bool) -> SentenceTransformer:
    pooling = Pooling(64, pooling_mode=mode, include_prompt=include_prompt)
    model = SentenceTransformer(modules=[Transformer(str(body)), pooling], device="cpu", prompts=PROMPTS)
    model.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_pooled_or_excluded_as_configured(
    plain: Path, tmp_path: Path, mode: str, include_prompt: bool
) -> None:
    reference = save(tmp_path, plain, mode, include_prompt=include_prompt)
    mine = Encoder(tmp_path, device="cpu", dtype="float32")
    for options in ({"prompt_name": "query"}, {"prompt_name": "passage"}, {"prompt": "a dog "}, {}):
        expected = reference.encode(TEXTS, **options)
        deviation = np.abs(mine.encode(TEXTS, **options) - expected).max()
        # mean_sqrt_len_tokens gives large values, for which the tolerance is larger.
        assert deviation <= 1e-5 * max(1, np.abs(expected).max() / 10), options


def test_an_unknown_prompt_name_is_an_error(plain: Path, tmp_path: Path) -> None:
    save(tmp_path, plain, "mean", include_prompt=True)
    mine = Encoder(tmp_path, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match=r"it has .*passage, query.*got 'haiku'"):
        mine.encode(["a"], prompt_name="haiku")
    with pytest.raises(ValueError, match="it has none"):
        Encoder(plain, device="cpu", dtype="float32").encode(["a"], prompt_name="query")
