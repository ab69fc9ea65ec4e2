"""Texts that overflow, forward passes that run out of memory, and layers that cannot be prepacked."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_serving.server.worker import encoder as encoding
from bert_serving.server.worker import linear, pooling_plan
from bert_serving.server.worker.encoder import Encoder, EncodingError
from bert_serving.server.worker.linear import PrepackedLinear, prepack
from bert_serving.server.worker.micro_batches import PreparedText
from bert_serving.server.worker.sequences import TokenSequence
from bert_serving.server.worker.transfers import Array
from bert_serving.server.worker.transformer import Transformer
from torch import nn
from transformers import AutoModel, AutoTokenizer

from tests.support.reference import STRATEGIES, Reference, deviation, pool
from tests.support.tiny_models import make_model

GOOD = ["the dog", "a quick brown fox jumps over the dog", "one", "word and word " * 9]
BAD = ["the lazy", "a quick brown lazy jumps"]  # the texts of the encoder's own checks do not contain "lazy"


def encoder(folder: Path, **options: object) -> Encoder:
    settings = {"device": "cpu", "dtype": "float32", "pooling_layer": [-1]} | options
    return Encoder(folder, **settings)  # type: ignore[arg-type]


def forward(mine: Encoder, texts: list[str]) -> list[np.ndarray | EncodingError]:
    return list(mine.forward([task for task in mine.prepare(texts) if isinstance(task, PreparedText)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def overflowing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose first feed-forward layer gives 9e4 (too large for float16) for "lazy", otherwise 0."""
    target = tmp_path_factory.mktemp("overflowing")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    embeddings, layer = model.embeddings, model.encoder.layer[0]
    for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        table.weight.data[:, 0] = 0
    embeddings.word_embeddings.weight.data[tokenizer.convert_tokens_to_ids("lazy"), 0] = 50
    layer.attention.output.dense.weight.data[0] = 0
    layer.intermediate.dense.weight.data[0] = 0
    layer.intermediate.dense.weight.data[0, 0] = 1.5e4  # component 0 is 7 or 8 for "lazy", else about 0
    layer.intermediate.dense.bias.data[0] = -2e4
    layer.output.dense.weight.data[:, 0] *= 1e-4
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


# -- overflow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STRATEGIES, "NONE"])
def test_texts_that_overflow_float16_are_computed_again_in_float32(
    overflowing: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    reference = Reference(overflowing)
    half = encoder(overflowing, dtype="float16", pooling_strategy=name)
    with caplog.at_level(logging.WARNING):
        results = forward(half, [*GOOD, *BAD])
    assert "2 texts have no finite vector in float16, computing again in float32" in caplog.text
    hidden = [h[-1] for h in reference.hidden([reference.single(text) for text in [*GOOD, *BAD]])]
    expected = hidden if name == "NONE" else [pool(name, h) for h in hidden]
    for i, (result, right) in enumerate(zip(results, expected, strict=True)):
        assert not isinstance(result, EncodingError)
        assert result.dtype == np.float32
        difference = deviation(result, right)
        assert difference <= (1e-5 if i >= len(GOOD) else 0.05)


def test_a_text_that_overflows_float32_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "bert", poison="lazy")
    reference = Reference(folder)
    for dtype in ("float32", "bfloat16", "float16"):
        mine = encoder(folder, dtype=dtype, pooling_strategy=STRATEGIES)
        texts = [BAD[0], *GOOD, BAD[1]]
        results = forward(mine, texts)
        assert [isinstance(result, EncodingError) for result in results] == [True, *[False] * len(GOOD), True]
        hidden = reference.hidden([reference.single(text) for text in GOOD])
        for result, h in zip(results[1:-1], hidden, strict=True):
            expected = np.concatenate([pool(name, h[-1]) for name in STRATEGIES])
            assert deviation(result, expected) <= (1e-5 if dtype == "float32" else 0.1)
        with pytest.raises(EncodingError, match=r"texts\[4\]: the model gives no finite vector"):
            mine.encode([*GOOD, *BAD])
        with pytest.raises(EncodingError, match=r"texts\[1\]"):
            mine.encode_tokens(["the dog", "a lazy"])
        with pytest.raises(EncodingError, match=r"texts\[0\]"):
            mine.encode_spans(["a lazy ran"], [[(0, 1)]])


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_a_text_without_a_vector_does_not_affect_others_when_padded(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path, family, poison="lazy")
    results = forward(encoder(folder), [*GOOD, *BAD])
    reference = Reference(folder)
    expected = [h[-1].mean(0) for h in reference.hidden([reference.single(text) for text in GOOD])]
    assert deviation(results[: len(GOOD)], expected) <= 1e-5
    assert all(isinstance(result, EncodingError) for result in results[len(GOOD) :])


# -- memory --------------------------------------------------------------------------------------------


class Memory:
    """A fake device that runs out of memory in a forward pass of more than `limit` tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.limit = limit
        self.passes: list[int] = []
        original = Transformer.hidden_with

        def hidden_with(
            transformer: Transformer,
            sequences: Sequence[TokenSequence],
            layers: Iterable[int],
            arrays: Sequence[Array],
        ) -> tuple[dict[int, torch.Tensor], list[torch.Tensor]]:
            self.passes.append(sum(len(sequence.ids) for sequence in sequences))
            if self.passes[-1] > self.limit:
                raise torch.OutOfMemoryError("no more")
            return original(transformer, sequences, layers, arrays)

        monkeypatch.setattr(Transformer, "hidden_with", hidden_with)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_out_of_memory_halves_the_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    mine = encoder(make_model(tmp_path, family), max_batch_tokens=2048)
    texts = [*GOOD, "two three four"] * 60
    expected = mine.encode(texts)
    memory = Memory(monkeypatch, limit=400)
    assert deviation(mine.encode(texts), expected) <= 1e-5
    assert memory.limit // 4 <= mine._budget.tokens <= memory.limit
    memory.passes.clear()
    assert deviation(mine.encode(texts), expected) <= 1e-5
    assert max(memory.passes) <= memory.limit


def test_token_budget_is_halved_once_per_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = encoder(folder, max_batch_tokens=1000)
    Memory(monkeypatch, limit=600)
    mine.encode(["one two three"] * 3000)  # the plan has fifteen forward passes
    assert mine._budget.tokens == 500


def test_a_single_sequence_that_does_not_fit_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = encoder(folder)
    Memory(monkeypatch, limit=20)
    with pytest.raises(torch.OutOfMemoryError):
        mine.encode(["one two", "word " * 30, "three"])
    assert mine.encode(["one two", "three"]).shape == (2, 64)


# -- prepacked linear layers ---------------------------------------------------------------------------


def count(mine: Encoder) -> int:
    return sum(isinstance(module, PrepackedLinear) for module in mine._loaded.transformer._model.modules())


class Feed(nn.Module):
    """The first half of a feed-forward block, with the attribute names of BERT models."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(48, 96)
        self.intermediate_act_fn = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.intermediate_act_fn(self.dense(x))
        return y


@pytest.mark.parametrize(
    "act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python", "quick_gelu", "relu"]
)
@torch.inference_mode()
def test_a_prepacked_block_gives_the_same_result_with_any_activation(act: str) -> None:
    from transformers.activations import ACT2FN

    block = Feed(ACT2FN[act])
    x = torch.randn(300, 48) * 3
    expected = block(x)
    prepacking = prepack(block, torch.float32)
    assert prepacking is not None
    assert isinstance(block.dense, PrepackedLinear)
    assert isinstance(block.intermediate_act_fn, nn.Identity) == (act == "gelu")
    assert float((block(x) - expected).abs().max()) <= 1e-5
    prepacking.undo()
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("rows", [1, 2, 17, 1024, 3000])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_prepacked_layer_equals_the_plain_one(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    plain = nn.Linear(33, 65, bias=bias)
    x = torch.randn(1, rows, 33)
    expected = plain(x)
    assert float((PrepackedLinear(plain, torch.float32)(x) - expected).abs().max()) <= 1e-5
    low = PrepackedLinear(plain, torch.bfloat16)(x).float()
    assert float((low - expected).abs().max()) <= 0.05


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_a_model_with_any_gelu_equals_transformers(tmp_path: Path, act: str) -> None:
    folder = make_model(tmp_path, "bert", hidden_act=act)
    mine, reference = encoder(folder), Reference(folder)
    assert count(mine) > 0
    expected = [h[-1].mean(0) for h in reference.hidden([reference.single(text) for text in GOOD])]
    assert deviation(mine.encode(GOOD), expected) <= 1e-5


def test_layers_are_not_prepacked_without_onednn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoder(folder).encode(GOOD)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):
        mine = encoder(folder, dtype=dtype)
        assert count(mine) == 0
        assert deviation(mine.encode(GOOD), expected) <= tolerance


def test_operators_that_fail_are_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator")

    expected = encoder(folder).encode(GOOD)
    monkeypatch.setattr(linear.PrepackedLinear, "forward", fail)
    mine = encoder(folder)
    assert count(mine) == 0
    assert deviation(mine.encode(GOOD), expected) <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_are_restored_if_the_model_reads_their_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from transformers.models.bert import modeling_bert

    expected = encoder(folder, dtype=dtype).encode(GOOD)
    original = modeling_bert.BertOutput.forward

    def reads_weight(module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        assert module.dense.weight.ndim == 2  # a prepacked layer has no weight
        return original(module, *args)

    monkeypatch.setattr(modeling_bert.BertOutput, "forward", reads_weight)
    mine = encoder(folder, dtype=dtype)
    assert count(mine) == 0
    assert deviation(mine.encode(GOOD), expected) <= (1e-5 if dtype == "float32" else 0.1)


def test_memory_depends_on_the_micro_batch_and_not_on_the_request(folder: Path) -> None:
    """Computing all 500,000 tokens at once would need at least 256 MB for the feed-forward layer."""
    script = (
        "import resource, sys\n"
        "from bert_serving.server import Encoder\n"
        "encoder = Encoder(sys.argv[1], device='cpu', dtype='float32')\n"
        "encoder.encode(['word ' * 98] * 100)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "encoder.encode(['word ' * 98] * 5000)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, f"memory grew by {done.stdout} MiB"


def test_number_of_tokenizer_threads_is_limited(folder: Path) -> None:
    """RAYON_NUM_THREADS is set after all imports, as in a worker. The threads start with the first long batch."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bert_serving.server.worker.tokenizer import Tokenizer\n"
        "os.environ['RAYON_NUM_THREADS'] = sys.argv[2]\n"
        "tokenizer = Tokenizer(Path(sys.argv[1]), max_seq_len=64)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "tokenizer(['word ' * 50] * 2000)\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    for limit in (1, 3):
        command = [sys.executable, "-c", script, folder, str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) == limit


# -- special cases -------------------------------------------------------------------------------------


def test_the_pooler_is_computed_again_in_float32_too(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    model.encoder.layer[-1].output.LayerNorm.weight.data *= 1e5  # first tokens become too large for float16
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    options = {"pooling_strategy": "CLS_POOLED"}
    rows, expected = (encoder(tmp_path, dtype=dtype, **options).encode(GOOD) for dtype in ("float16", "float32"))
    assert np.isfinite(rows).all()
    assert deviation(rows, expected) <= 0.01


def test_albert_layers_keep_their_weights_when_fewer_are_loaded(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "albert", num_hidden_layers=4, num_hidden_groups=2)
    hidden = Reference(folder).hidden([Reference(folder).single(text) for text in GOOD])
    for layer in (-2, -3, -4):
        expected = [pool("REDUCE_MEAN", h[layer], [1] * h.shape[1]) for h in hidden]
        assert deviation(encoder(folder, pooling_layer=[layer]).encode(GOOD), expected) <= 1e-5, layer


@pytest.mark.parametrize("name", ["CLS_TOKEN", "REDUCE_MEAN"])
def test_masked_deberta_does_not_depend_on_other_texts(tmp_path: Path, name: str) -> None:
    mine = encoder(make_model(tmp_path, "deberta-v2"), mask_cls_sep=True, pooling_strategy=name)
    assert deviation(mine.encode(["fox", "word " * 30])[:1], mine.encode(["fox"])) <= 1e-5


def test_a_token_without_an_embedding_fails_only_its_own_text(folder: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"] + [f"new{i}" for i in range(300)])
    tokenizer.save_pretrained(tmp_path)
    mine = encoder(tmp_path)
    assert np.array_equal(mine.encode(GOOD), encoder(folder).encode(GOOD))
    with pytest.raises(
        ValueError, match=r"texts\[1\]: the tokenizer has tokens that the model has no embedding for"
    ):
        mine.encode(["one", "a new299"])


def test_huge_spans_and_vectors_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = encoder(folder)
    text = "word " * 60_000
    with pytest.raises(ValueError, match="the spans of a text may have at most 262144 tokens in total"):
        mine.encode_spans([text], [[(0, len(text))] * 5], long_text="chunk")
    monkeypatch.setattr(pooling_plan, "_MAX_WIDTH", 256)
    with pytest.raises(ValueError, match=r"a vector may have at most 256 components, but these .* give 384"):
        mine.encode(["a"], pooling_layer=[-1, -2], pooling_strategy=["REDUCE_MEAN_MAX", "REDUCE_MAX"])
    monkeypatch.setattr(encoding, "_MAX_TOKEN_BYTES", 32 << 20)
    with pytest.raises(ValueError, match="the token vectors of a text may have at most 32 MiB"):
        mine.encode_tokens([text * 2], pooling_layer=[-1, -2], long_text="chunk")


def test_a_layer_that_is_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="pooling_layer must not name layer 2 more than once"):
        encoder(folder).encode(["a"], pooling_layer=[-1, 2])
