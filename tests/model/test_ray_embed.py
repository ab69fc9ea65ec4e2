"""Embed gives the vectors of Encoder in Ray Data, in order, and a job that was killed continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from bert_serving.ray import Embed
from bert_serving.server.files import FileError
from bert_serving.server.worker.encoder import Encoder

from tests.support.code_blocks import blocks_run_by
from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S, wait_until

NUM_TEXTS = int(os.environ.get("BERT_SERVING_TEST_EMBED_TEXTS", "400"))
TEXTS = [f"{'some words of a sentence ' * (i % 9)}and the number {i}" for i in range(NUM_TEXTS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        yield
        ray.shutdown()


def vectors_of(table: pa.Table, column: str = "vector") -> np.ndarray:
    array = table[column].combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)


def expected(model: Path) -> np.ndarray:
    return Encoder(model, dtype="float32", device="cpu", compile="off").encode(TEXTS)


def finished(checkpoints: Path) -> dict[Path, int]:
    """Return the checkpoints of the blocks that were written, and when."""
    paths = checkpoints.rglob("*.parquet")
    return {path: path.stat().st_mtime_ns for path in paths if not path.name.endswith(".pending.parquet")}


@pytest.mark.usefixtures("cluster")
def test_vectors_are_those_of_the_encoder_bit_for_bit_and_in_order(demo_model: Path) -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    texts = ray.data.from_arrow(pa.table({"id": range(NUM_TEXTS), "text": TEXTS}))
    embedded = texts.repartition(10).map_batches(
        Embed,
        batch_format="pyarrow",
        batch_size=64,
        concurrency=2,
        fn_constructor_kwargs={"model_dir": str(demo_model), "dtype": "float32", "compile": "off"},
    )
    table = pa.concat_tables(ray.get(embedded.to_arrow_refs()))
    assert table["id"].to_pylist() == list(range(NUM_TEXTS))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
    assert np.array_equal(vectors_of(table), expected(demo_model))


def test_a_job_that_is_killed_half_way_continues_and_writes_each_row_once(
    demo_model: Path, tmp_path: Path
) -> None:
    source, output, checkpoints = tmp_path / "texts.parquet", tmp_path / "vectors", tmp_path / "checkpoints"
    pq.write_table(pa.table({"id": range(NUM_TEXTS), "text": TEXTS}), source)
    args = map(str, (source, output, checkpoints, demo_model, NUM_TEXTS // 20))
    command = [sys.executable, "-m", "tests.support.embed_files", *args]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=env, stderr=subprocess.DEVNULL) as first:
        wait_until(lambda: first.poll() is not None or len(finished(checkpoints)) >= 3)
        family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert first.returncode == -signal.SIGKILL
    psutil.wait_procs(family, HANG_S)
    before = finished(checkpoints)
    assert 3 <= len(before) < 20
    run = subprocess.run(command, cwd=root, env=env, timeout=HANG_S, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert finished(checkpoints).items() >= before.items()
    table = pq.read_table(output).sort_by("id")
    assert table["id"].to_pylist() == list(range(NUM_TEXTS))
    assert np.array_equal(
        vectors_of(table), Encoder(demo_model, dtype="float32", device="cpu", compile="off").encode(TEXTS)
    )


def test_an_actor_loads_the_model_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no-model"):
        Embed(model_dir=tmp_path / "no-model")
    with pytest.raises(FileError, match="no_such_option"):
        Embed(no_such_option=1)


@pytest.mark.usefixtures("cluster")
def test_options_reach_the_actors(model: Path) -> None:
    options = {"text_column": "title", "output_column": "v", "precision": "float16", "normalize": True}
    texts = ray.data.from_arrow(pa.table({"title": ["one", None, "two"], "v": [1, 2, 3], "id": [7, 8, 9]}))
    embedded = texts.map_batches(
        Embed, batch_format="pyarrow", concurrency=1, fn_constructor_kwargs={**options, "model_dir": str(model)}
    )
    table = pa.concat_tables(ray.get(embedded.to_arrow_refs())).sort_by("id")
    assert table.column_names == ["title", "v", "id"]
    assert table.schema.field("v").type == pa.list_(pa.float16(), 64)
    assert table["v"].is_valid().to_pylist() == [True, False, True]
    good = np.array(table["v"].drop_null().to_pylist(), np.float32)
    assert np.linalg.norm(good, axis=1) == pytest.approx([1, 1], abs=1e-2)


@pytest.mark.usefixtures("cluster")
def test_the_job_of_the_page_writes_a_vector_for_each_row(model: Path, tmp_path: Path) -> None:
    """With local folders, and with one actor on a CPU."""
    (block,) = blocks_run_by(__file__)
    code = block.code
    for shown, here in (
        ("s3://bucket", str(tmp_path)),
        ("/mnt/shared", str(tmp_path)),
        ("/models/my-model", str(model)),
        ("num_gpus=1,", "num_cpus=1,"),
        ("concurrency=4,", "concurrency=1,"),
    ):
        assert shown in code
        code = code.replace(shown, here)
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"id": [7, 8, 9], "body": ["one", None, "two"]}), tmp_path / "texts/some.parquet")
    context = ray.data.DataContext.get_current()
    checkpoints = context.checkpoint_config
    try:
        exec(code, {})
    finally:
        context.checkpoint_config = checkpoints
    table = pq.read_table(tmp_path / "vectors").sort_by("id")
    assert table["id"].to_pylist() == [7, 8, 9]
    assert table["vector"].is_valid().to_pylist() == [True, False, True]
