"""What the host does with a GPU: one copy to it for each micro-batch, and no waiting before the end of a batch.

The GPU is not there (tests/support/fake_cuda.py), so these tests run everywhere, and tests/gpu compares vectors.
DeBERTa is left out: parts of its code are TorchScript, which does not accept fake tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from bert_serving.protocol import EncodeOptions, Rows, options_from_json
from bert_serving.server.worker import attention
from bert_serving.server.worker.cuda_graphs import NotRecorded, OnlyRecordable
from bert_serving.server.worker.loading import LoadedModel
from bert_serving.server.worker.micro_batches import Budget, PreparedText, micro_batches
from bert_serving.server.worker.pooling import STRATEGIES
from bert_serving.server.worker.sequences import TokenizedText

from tests.support.fake_cuda import FakeCuda, Step, load_on_fake_cuda, steps_of, without_recording
from tests.support.tiny_models import FAMILIES, make_classifier, make_masked, make_model

FAKED = [family for family in FAMILIES if family != "deberta-v2"]
TEXTS = ["one two three", "a quick ||| brown fox", "word " * 700, "the dog", "the fox", "lazy"]
SPANS = [[(0, 3), (4, 7)], [(0, 1)], [(0, 4), (100, 150)], [(0, 7)], [(4, 7)], [(0, 4)]]
BOTH = pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_model(tmp_path_factory.mktemp(name), name) for name in FAKED}


def prepare(
    loaded: LoadedModel, options: EncodeOptions | None = None, *, spans: bool = False, prompt: str = ""
) -> list[PreparedText]:
    """Return the texts, ready to be computed with the options. prompt: pooling leaves it out."""
    options, texts, of_texts = options or EncodeOptions(), TEXTS, None
    if spans:
        texts, of_texts = [text.replace(" ||| ", " ") for text in TEXTS], SPANS
    found = loaded.tokenizer(texts, options, prompt=prompt, pool_prompt=False, spans=of_texts)
    assert all(isinstance(text, TokenizedText) for text in found), found
    return [PreparedText(text, loaded.planner(options)) for text in found if isinstance(text, TokenizedText)]


def run(cuda: FakeCuda, loaded: LoadedModel, prepared: Sequence[PreparedText]) -> tuple[list[Step], list[Rows]]:
    """Compute the texts in micro-batches of few tokens, check each step, and return the steps and the rows."""
    hides = loaded.transformer._inputs.hide_specials
    with cuda.running():
        computation = micro_batches(loaded.transformer, prepared, Budget(20), hide_specials=hides)
        steps, rows = steps_of(cuda, computation)
    *passes, end = steps
    assert len(passes) > 1
    for step in passes:
        assert [copy.waits for copy in step.copies if copy.to_device] == [False], "one copy, from pinned memory"
        assert step.waits == []
    assert sum(not copy.to_device for copy in end.copies) <= 1
    for step in steps:
        assert not any(copy.waits for copy in step.copies)
        assert step.mixed == []
        assert step.unready == []
    return steps, rows


@pytest.mark.parametrize(
    ("dtype", "padded"),
    [(torch.float16, False), (torch.float32, False), (torch.float16, True)],
    ids=["float16", "float32", "padded"],
)
@pytest.mark.parametrize("family", FAKED)
def test_a_micro_batch_is_one_copy_and_no_wait(
    folders: dict[str, Path], family: str, padded: bool, dtype: torch.dtype
) -> None:
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, folders[family], dtype, padded=padded, all_layers=True)
    steps, rows = run(cuda, loaded, prepare(loaded))
    assert {row.shape for row in rows} == {(64,)}
    assert steps[-1].waits == ["synchronize"]
    assert [copy.num_bytes for copy in steps[-1].copies] == [len(TEXTS) * 64 * 4]


@pytest.mark.parametrize("family", [family for family in FAKED if family != "mpnet"])
def test_a_short_pass_by_a_cuda_graph_is_one_copy_and_no_wait(folders: dict[str, Path], family: str) -> None:
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, folders[family], torch.float16)
    with without_recording(), cuda.running():
        layers, longest = loaded.check.layers, loaded.max_seq_len
        transformer = loaded.transformer.with_graphs(layers, longest=longest, max_tokens=512)
    graphs = transformer._graphs
    assert graphs is not None
    with mock.patch.object(graphs, "run", wraps=graphs.run) as runs:
        steps, rows = run(cuda, replace(loaded, transformer=transformer), prepare(loaded))
    sizes = [call.args[0] for call in runs.call_args_list]
    assert (sizes[0], len(sizes)) == (512, len(steps) - 1), sizes
    assert {row.shape for row in rows} == {(64,)}
    assert steps[-1].waits == ["synchronize"]


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.index_put_((x > 0,), torch.ones(3, device="cuda:0")),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x * torch.tensor(2.0).to("cuda:0"),
        lambda x: x + torch.ones(3).to("cuda:0", non_blocking=True),
        lambda x: torch.repeat_interleave(x, torch.ones(3, dtype=torch.int64, device="cuda:0")),
    ],
)
def test_a_pass_that_waits_is_not_recorded(waits: Callable[[torch.Tensor], object]) -> None:
    cuda = FakeCuda()
    with cuda.running(), torch.inference_mode():
        x = torch.ones(3, device="cuda:0")
        with OnlyRecordable():
            index = torch.zeros(2, dtype=torch.int64, device="cuda:0")
            torch.nn.functional.gelu(x[index] * 2.0 + torch.tensor(1.0)).to(torch.float16)
            with pytest.raises(NotRecorded, match=r"waits for the GPU|copies between"):
                waits(x)


@BOTH
@pytest.mark.parametrize("hides", [False, True], ids=["", "mask_cls_sep"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet"])
def test_texts_with_any_options_share_one_copy(
    folders: dict[str, Path], family: str, hides: bool, dtype: torch.dtype
) -> None:
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, folders[family], dtype, all_layers=True, mask_cls_sep=hides)
    bodies: list[dict[str, object]] = [{"pooling_strategy": [name]} for name in [*STRATEGIES, "NONE"]]
    bodies += [
        {"pooling_strategy": ["REDUCE_MAX", "WEIGHTED_MEAN"], "pooling_layer": [-1, 0, 1]},
        {"pooling_strategy": ["NONE"], "pooling_layer": [-1, 0], "normalize": True, "dimensions": 8},
        {"long_text": "chunk", "normalize": True},
        {"long_text": "chunk", "pooling_strategy": ["NONE"]},
    ]
    if loaded.transformer.heads:
        bodies.append({"pooling_strategy": ["CLS_POOLED", "REDUCE_MEAN"]})
    prepared = [text for body in bodies for text in prepare(loaded, options_from_json(body))]
    prepared += prepare(loaded, prompt="the quick fox ")
    prepared += prepare(loaded, spans=True)
    prepared += prepare(loaded, options_from_json({"long_text": "chunk"}), spans=True)
    steps, rows = run(cuda, loaded, prepared)
    assert all(row.size for row in rows)
    assert steps[-1].waits == ["synchronize"] * 2, "once for token vectors, and once for the rest"


def test_token_vectors_are_read_when_they_have_arrived(folders: dict[str, Path]) -> None:
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, folders["bert"], torch.float16)
    prepared = prepare(loaded, options_from_json({"pooling_strategy": ["NONE"], "dimensions": 16}))
    steps, rows = run(cuda, loaded, prepared)
    num_tokens = sum(text.text.num_tokens for text in prepared)
    assert sum(map(len, rows)) == num_tokens
    to_host = [copy for step in steps for copy in step.copies if not copy.to_device]
    assert sum(copy.num_bytes for copy in to_host) == num_tokens * 16 * 4, "only the asked dimensions"
    assert steps[-1].waits == ["synchronize"]


@BOTH
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "mpnet"])
def test_classification_heads_do_not_wait(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    for num_labels, strategies in ((3, ["CLASSIFICATION", "LOGITS"]), (1, ["REGRESSION"])):
        cuda = FakeCuda()
        folder = make_classifier(tmp_path / str(num_labels), family, num_labels=num_labels)
        loaded = load_on_fake_cuda(cuda, folder, dtype, pooling_strategy=strategies[0])
        prepared = [
            text
            for name in strategies
            for text in prepare(loaded, options_from_json({"pooling_strategy": [name]}))
        ]
        _, rows = run(cuda, loaded, prepared)
        assert {row.shape for row in rows} == {(num_labels,)}


@BOTH
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_sparse_vectors_wait_only_at_the_end(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, make_masked(tmp_path, family), dtype, pooling_strategy="SPLADE")
    prepared = [*prepare(loaded), *prepare(loaded, options_from_json({"long_text": "chunk"}))]
    steps, _ = run(cuda, loaded, prepared)
    assert steps[-1].waits == ["aten.nonzero.default", "synchronize"]


def test_dense_layers_after_the_pooling_do_not_wait(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "bert")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path, config in (
        ("1_Pooling", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}),
        ("2_Dense", {"in_features": 64, "out_features": 32, "bias": True}),
    ):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
    weights = {"linear.weight": torch.randn(32, 64), "linear.bias": torch.randn(32)}
    torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, folder, torch.float16)
    _, rows = run(cuda, loaded, prepare(loaded))
    assert {row.shape for row in rows} == {(32,)}


@pytest.mark.skipif(not attention._takes_num_splits(), reason="this PyTorch always lets the kernel choose")
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_attention_kernel_does_not_split_a_sequence(folders: dict[str, Path], family: str) -> None:
    cuda = FakeCuda()
    loaded = load_on_fake_cuda(cuda, folders[family], torch.float16, all_layers=True)
    steps, _ = run(cuda, loaded, prepare(loaded))
    assert {value for step in steps for value in step.num_splits} == {1}
    assert {len(step.num_splits) for step in steps[:-1]} == {loaded.transformer.num_layers}


def test_the_fake_device_notices_what_waits_and_what_mixes() -> None:
    cuda = FakeCuda()
    with cuda.running():
        on_host = torch.ones(3)
        tensor = on_host.to("cuda:0", non_blocking=True)
        assert cuda.step.copies[-1].waits, "not from pinned memory"
        tensor.cpu()
        assert cuda.step.copies[-1].waits
        arriving = tensor.to("cpu", non_blocking=True)
        assert not cuda.step.copies[-1].waits
        arriving.numpy()
        assert cuda.step.unready == ["numpy"]
        (tensor + torch.tensor(1.0)).nonzero()
        assert cuda.step.mixed == [("aten.add.Tensor", 0)]
        assert cuda.step.waits == ["aten.nonzero.default"]
        with pytest.raises(Exception, match="_local_scalar_dense"):
            tensor.sum().item()
        with pytest.raises(RuntimeError, match="on the same device"):
            tensor + on_host
        _ = tensor[torch.zeros(1, dtype=torch.int64)]
        assert cuda.step.mixed[-1] == ("aten.index.Tensor", 1)
