"""A forward pass that is compiled for this processor gives the vectors of the model, for every packed family."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from bert_serving.protocol import Rows, Text
from bert_serving.protocol.workers import Batch, Part, Result, Vectors
from bert_serving.server.model.errors import ModelError
from bert_serving.server.model.spec import ModelSpec
from bert_serving.server.worker.batch_loop import BatchLoop
from bert_serving.server.worker.compiled import build, operators
from bert_serving.server.worker.compiled.build import program_of
from bert_serving.server.worker.compiled.cache import Cache
from bert_serving.server.worker.compiled.forward import CompiledForward, GraphFacts
from bert_serving.server.worker.compiled.quantization import TracedForward
from bert_serving.server.worker.compiled.target import Target
from bert_serving.server.worker.device import pick_dtype
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.lanes import Work
from bert_serving.server.worker.loading import load

from tests.support.tiny_models import FAMILIES, WORDS, make_model
from tests.support.waiting import HANG_S

PADDED = {"mpnet", "deberta-v2"}
needs_products = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="needs a processor with AVX-512 VNNI"
)
TEXTS = [" ".join(WORDS[i : i + 1 + i % 19]) for i in range(len(WORDS))] + ["a", "word " * 300]


def encoder(folder: Path, cache: Path, **options: object) -> Encoder:
    given = {"device": "cpu", "dtype": "float32", "compile": "wait", "compile_cache": cache} | options
    return Encoder(folder, **given)  # type: ignore[arg-type]


def smallest_cosine(rows: Rows, expected: Rows) -> float:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((rows * expected).sum(1) / norms).min())


def int8_products(folder: Path) -> int:
    return GraphFacts.read(folder).int8_products


@pytest.fixture(scope="module", autouse=True)
def shared_files_of_the_compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let PyTorch's compiler find again what it compiled and measured for another test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def compiled(bert: Path, cache: Path) -> Encoder:
    mine = encoder(bert, cache)
    assert mine.forward_kind == "compiled"
    return mine


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int8", marks=needs_products)])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in PADDED])
def test_the_graph_of_every_packed_family_gives_its_vectors(
    family: str, dtype: str, tmp_path: Path, code_of_operators: None
) -> None:
    folder = make_model(tmp_path / family, family)
    exact = encoder(folder, tmp_path, compile="off").encode(TEXTS)
    rest = pick_dtype(dtype, torch.device("cpu"))
    mine = encoder(folder, tmp_path, compile="off", dtype=str(rest).removeprefix("torch."))
    loaded = mine._loaded
    layers = sorted(loaded.check.layers)
    program, num_int8 = program_of(loaded, layers, max_tokens=2048, integers=dtype == "int8")
    forward = TracedForward(program.module(), layers)
    mine._loaded = replace(loaded, transformer=loaded.transformer.with_compiled(forward))
    assert smallest_cosine(mine.encode(TEXTS), exact) >= 0.999
    assert (num_int8 > 0) is (dtype == "int8")
    operations = {str(node.target) for node in program.graph.nodes}
    assert "bert_serving.packed_attention.default" in operations
    is_fused = dtype == "int8" or operators.product_dtype() is torch.bfloat16
    assert ("bert_serving.product.default" in operations) is is_fused
    assert ("aten.linear.default" in operations) is not is_fused


@pytest.mark.parametrize(("family", "dtype"), [("modernbert", "float32"), ("roberta", "bfloat16")])
def test_it_is_compiled(family: str, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = make_model(tmp_path / family, family)
    mine = encoder(folder, tmp_path / "cache", dtype=dtype)
    assert mine.forward_kind == "compiled", caplog.text
    rows, exact = mine.encode(TEXTS), encoder(folder, tmp_path, compile="off").encode(TEXTS)
    if dtype == "float32":
        assert mine.parity > 0.99999
        assert np.abs(rows - exact).max() <= 1e-5
    else:
        assert smallest_cosine(rows, exact) >= 0.999


@needs_products
def test_integers_stay_close(bert: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine, exact = encoder(bert, cache, dtype="int8"), encoder(bert, cache, compile="off")
    assert (mine.forward_kind, mine.dtype_name) == ("compiled", "int8")
    assert smallest_cosine(mine.encode(TEXTS), exact.encode(TEXTS)) >= 0.999
    (folder,) = [path for path in cache.iterdir() if (path / "facts.json").exists() and int8_products(path)]
    assert int8_products(folder) > 0


@pytest.mark.parametrize(("has_bfloat16", "rest"), [(True, torch.bfloat16), (False, torch.float32)])
def test_what_is_not_in_integers(has_bfloat16: bool, rest: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    assert pick_dtype("int8", torch.device("cpu")) is rest


def test_integers_need_a_processor_and_a_compiled_pass(
    bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match="needs a CPU with AVX-512 VNNI:"):
        encoder(bert, cache, dtype="int8")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    with pytest.raises(ModelError, match="needs a compiled forward pass"):
        encoder(bert, cache, dtype="int8", compile="off")


def test_a_vector_does_not_depend_on_its_company(compiled: Encoder) -> None:
    together = compiled.encode(TEXTS)
    alone = np.concatenate([compiled.encode([text]) for text in TEXTS])
    assert np.abs(together - alone).max() <= 1e-5


def test_a_pass_lets_other_threads_run_python(compiled: Encoder) -> None:
    forward = compiled._loaded.transformer._compiled
    assert isinstance(forward, CompiledForward)
    num_tokens = forward.facts.max_tokens
    row = torch.ones(1, num_tokens, dtype=torch.int64)
    inputs = [row, row, torch.tensor([num_tokens]), row * 0]
    spans: list[tuple[float, float]] = []

    def run() -> None:
        for _ in range(50):
            start = time.perf_counter()
            forward._graph.run(inputs)
            spans.append((start, time.perf_counter()))

    times = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # a thread gives up Python's lock only where it waits or computes without it
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            times.append(time.perf_counter())
            time.sleep(0)
    finally:
        sys.setswitchinterval(interval)
    num_with_others = sum(any(start < now < end for now in times) for start, end in spans)
    assert num_with_others > 5, num_with_others  # if passes keep the lock, it is 0


def test_lanes_give_the_vectors_of_a_single_thread(compiled: Encoder) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert compiled.num_lanes == 2
        rows, threads = computed_in_lanes(compiled, [TEXTS, TEXTS[::-1], ["one two"], TEXTS[:9]])
    finally:
        torch.set_num_threads(before)
    for found, texts in zip(rows, [TEXTS, TEXTS[::-1], ["one two"], TEXTS[:9]], strict=True):
        assert np.abs(found - compiled.encode(texts)).max() <= 1e-5
    assert "lane-1" in threads


def computed_in_lanes(mine: Encoder, batches: list[list[str]]) -> tuple[list[Rows], set[str]]:
    """Return the vectors of each batch, and the names of the threads that have computed them."""
    work, results, threads = Work(), queue.SimpleQueue[Result](), set()
    loop = BatchLoop(
        mine, work, dtype=np.dtype(np.float32), max_batch_tokens=1024, send=results.put,  # type: ignore[arg-type]
        on_forward=lambda: threads.add(threading.current_thread().name),
    )  # fmt: skip
    for number, texts in enumerate(batches):
        work.put(Batch(number, [Part(texts)]))
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    found = {}
    for _ in batches:
        result = results.get(timeout=HANG_S)
        (part,) = result.part_results
        assert isinstance(part, Vectors)
        found[result.batch_id] = part.rows
    work.put(None)
    thread.join(HANG_S)
    return [found[number] for number in range(len(batches))], threads


def test_what_the_graph_lacks_is_computed_without_it(compiled: Encoder, bert: Path, cache: Path) -> None:
    plain = encoder(bert, cache, compile="off", all_layers=True)
    whole = encoder(bert, cache, all_layers=True)
    for options in ({"pooling_layer": -3}, {"pooling_layer": [-1, -2]}, {"pooling_strategy": "NONE"}):
        assert np.abs(whole.encode(TEXTS, **options) - plain.encode(TEXTS, **options)).max() <= 1e-5


def test_pairs_and_single_tokens(compiled: Encoder, bert: Path, cache: Path) -> None:
    plain = encoder(bert, cache, compile="off")
    texts: list[Text] = ["one two ||| three four", "five", [5], [5, 6]]
    assert np.abs(compiled.encode(texts) - plain.encode(texts)).max() <= 1e-5


def test_the_next_encoder_takes_the_graph_from_the_cache(compiled: Encoder, bert: Path, cache: Path) -> None:
    before = sorted(cache.iterdir())
    again = encoder(bert, cache, compile="auto")
    assert again.forward_kind == "compiled"
    assert sorted(cache.iterdir()) == before
    assert np.array_equal(again.encode(TEXTS), compiled.encode(TEXTS))


def test_an_encoder_compiles_only_if_it_is_asked_to(bert: Path, tmp_path: Path) -> None:
    assert encoder(bert, tmp_path, compile="auto").forward_kind == "packed"
    assert encoder(bert, tmp_path, compile="off").forward_kind == "packed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("compile_", "priorities"), [("wait", []), ("auto", [call(10)])])
def test_a_compilation_in_the_background_has_a_low_priority(
    compile_: str, priorities: list[object], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(model_dir=bert, compile=compile_, compile_cache=tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(spec.model_dump_json()))
    monkeypatch.setattr(build, "load", Mock(side_effect=ModelError("stop here")))
    monkeypatch.setattr(build, "_end_with", Mock())  # it would end the tests with their parent
    monkeypatch.setattr(os, "nice", lowered := Mock())
    with pytest.raises(ModelError, match="stop here"):
        build.main("key", torch.get_num_threads(), os.getppid())
    assert lowered.mock_calls == priorities


def test_a_crash_of_the_compilation_is_reported_with_its_place(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("bert_serving.server.worker.compiled.target._PROGRAM", "tests.support.crash")
    assert encoder(bert, tmp_path).forward_kind == "packed"
    assert re.search(r"the process that compiles died of SIGSEGV in .*, line \d+ in string_at", caplog.text)


def test_other_options_have_another_graph(compiled: Encoder, bert: Path, cache: Path) -> None:
    assert encoder(bert, cache, compile="auto", pooling_layer=[-2]).forward_kind == "packed"


def test_a_damaged_graph_is_removed(
    compiled: Encoder, bert: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    for folder in [path for path in cache.iterdir() if path.is_dir()]:
        (copy / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (copy / folder.name / file.name).write_bytes(file.read_bytes()[:1000])
    copy.chmod(0o700)
    before = len(list(copy.iterdir()))
    assert encoder(bert, copy, compile="auto").forward_kind == "packed"
    assert "is damaged" in caplog.text
    assert len(list(copy.iterdir())) == before - 1


def test_operators_are_compiled_once(
    compiled: Encoder, bert: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = [path.parent for path in cache.glob("*/operators.so") if not (path.parent / "graph.so").exists()]
    shutil.copytree(whole, own := tmp_path / "own" / whole.name)
    own.parent.chmod(0o700)
    spec = ModelSpec(model_dir=bert, device="cpu", dtype="float32", compile_cache=own.parent)
    target = Target.of(spec, load(spec))
    monkeypatch.setattr(operators, "build", built := Mock(side_effect=operators.build))
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        build.add_operators(target, folder)
        assert (folder / "operators.so").read_bytes() == (whole / "operators.so").read_bytes()
        assert not built.called
    for file, text in (("operators.so", "cut off"), ("facts.json", "null")):
        (own / file).write_text(text)
        build.add_operators(target, folder)
        built.assert_called_once()
        built.reset_mock()
        assert build._is_whole(own)
        assert (folder / "operators.so").read_bytes() == (own / "operators.so").read_bytes()


# A model whose code looks at its own numbers.
_UNTRACEABLE = """
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

class UntraceableConfig(BertConfig):
    model_type = "untraceable"

class Untraceable(BertModel):
    config_class = UntraceableConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if output.last_hidden_state.sum().item() > 1e30:
            raise ValueError("too large")
        return output

AutoConfig.register("untraceable", UntraceableConfig)
AutoModel.register(UntraceableConfig, Untraceable)
"""


def test_a_model_that_cannot_be_traced_runs_as_before_and_is_tried_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, module = make_model(tmp_path / "own", "bert"), tmp_path / "untraceable.py"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "untraceable", "architectures": ["Untraceable"]})
    )
    module.write_text(_UNTRACEABLE)
    for _ in range(2):
        mine = encoder(folder, tmp_path / "cache", model_module=str(module))
        assert mine.forward_kind == "packed"
        assert mine.encode(TEXTS).shape == (len(TEXTS), 64)
    said = [each.getMessage() for each in caplog.records if "not compiled" in each.getMessage()]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].startswith("the forward pass is not compiled: PyTorch cannot trace this model (")
    assert caplog.text.count("compiling the forward pass") == 1


def test_a_graph_that_is_not_exact_enough_is_not_used(
    compiled: Encoder, bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run = CompiledForward.__call__

    def with_noise(self: CompiledForward, *inputs: torch.Tensor) -> dict[int, torch.Tensor]:
        return {layer: hidden + torch.randn_like(hidden) for layer, hidden in run(self, *inputs).items()}

    monkeypatch.setattr(CompiledForward, "__call__", with_noise)
    mine = encoder(bert, cache, compile="auto")
    assert mine.forward_kind == "packed"
    assert mine.parity > 0.99999
    assert "is too coarse" in caplog.text


def test_without_a_compiler_passes_run_as_before(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert encoder(bert, tmp_path / "cache").forward_kind == "packed"
    assert [r.getMessage() for r in caplog.records if "not compiled" in r.getMessage()] == [
        "the forward pass is not compiled: there is no C++ compiler (g++)"
    ]


def test_padded_models_and_hidden_special_tokens_are_not_compiled(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert encoder(make_model(tmp_path / "mpnet", "mpnet"), tmp_path / "cache").forward_kind == "padded"
    assert encoder(bert, tmp_path / "cache", mask_cls_sep=True).forward_kind == "packed"
    assert "only packed passes are compiled" in caplog.text
    assert "with -mask_cls_sep, passes are not compiled" in caplog.text


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="must belong to the user of the server"):
        Cache(tmp_path)


def test_a_full_cache_forgets_what_was_not_used_for_the_longest_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_serving.server.worker.compiled.cache._MAX_BYTES", 250)
    cache = Cache(tmp_path / "cache")
    for age, key in ((30, "old"), (20, "older than new"), (10, "new")):
        with cache.scratch() as scratch:
            (scratch / "graph").mkdir()
            (scratch / "graph" / "file").write_bytes(bytes(100))
            path = cache.add(key, scratch / "graph")
        os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime - age))
        if key == "older than new":
            cache.find("old")  # used just now
    assert sorted(path.name for path in cache.folder.iterdir()) == ["new", "old"]


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for name, age in (("partial-old", 90_000), ("partial-new", 10)):
        path = cache.folder / name
        path.mkdir()
        os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime - age))
    with cache.scratch():
        pass
    assert [path.name for path in cache.folder.iterdir()] == ["partial-new"]


@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("width", [4, 20, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_within_each_sequence(
    code_of_operators: None, window: int | None, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    lengths = [1, 2, 15, 16, 17, 33, 129, 300, 700]
    shape = (1, sum(lengths), 3, width)
    q, k, v = (torch.randn(shape).to(dtype).transpose(1, 2) for _ in range(3))
    ends = torch.tensor(lengths).cumsum(0)
    found = operators.attention(q, k, v, ends, None, window)[0]
    start = 0
    for end in ends.tolist():
        at = torch.arange(end - start)
        mask = None if window is None else (at[:, None] - at[None, :]).abs() < window
        own = (x[:, :, start:end].double() for x in (q, k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(*own, attn_mask=mask)[0].transpose(0, 1)
        assert (found[start:end] - expected).abs().max() <= (2e-6 if dtype is torch.float32 else 1e-2)
        start = end


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_not_finite_stays_visible(code_of_operators: None, dtype: torch.dtype) -> None:
    q = torch.randn(1, 2, 400, 32).to(dtype)
    q[0, 0, 7, 3] = float("nan")
    found = operators.attention(q, q, q, torch.tensor([5, 400]), None, None)
    assert not found[0, 5:, 0].isfinite().any()
    assert found[0, :5].isfinite().all()
    assert found[0, :, 1].isfinite().all()


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_does_not_depend_on_company(
    code_of_operators: None, dtype: torch.dtype, window: int | None
) -> None:
    lengths = [3, 16, 45, 290]
    q, k, v = (torch.randn(1, 2, sum(lengths), 64).to(dtype) * 3 for _ in range(3))
    ends = torch.tensor(lengths).cumsum(0)
    together = operators.attention(q, k, v, ends, None, window)
    for length, end in zip(lengths, ends.tolist(), strict=True):
        at = slice(end - length, end)
        alone = operators.attention(q[:, :, at], k[:, :, at], v[:, :, at], torch.tensor([length]), None, window)
        assert torch.equal(alone, together[:, at])
