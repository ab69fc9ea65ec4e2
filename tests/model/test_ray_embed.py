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
from bert_serving.ray.embed import fixed_size_lists
from bert_serving.server.worker.encoder import Encoder

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


def vectors_of(table: pa.Table, column: str = "embedding") -> np.ndarray:
    array = table[column].combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)


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
        fn_constructor_kwargs={"model_dir": demo_model, "dtype": "float32"},
    )
    table = pa.concat_tables(ray.get(embedded.to_arrow_refs()))
    assert table["id"].to_pylist() == list(range(NUM_TEXTS))
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    expected = Encoder(demo_model, dtype="float32", device="cpu").encode(TEXTS)
    assert np.array_equal(vectors_of(table), expected)


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
    assert np.array_equal(vectors_of(table), Encoder(demo_model, dtype="float32", device="cpu").encode(TEXTS))


def test_a_null_text_has_a_null_vector(model: Path) -> None:
    embed = Embed(model_dir=model, dtype="float32", device="cpu", output_column="v")
    table = embed(pa.table({"text": ["one", None, "two"]}))
    assert table["v"].is_valid().to_pylist() == [True, False, True]
    expected = Encoder(model, dtype="float32", device="cpu").encode(["one", "two"])
    assert np.array_equal(table["v"].drop_null().to_pylist(), expected)
    assert embed(pa.table({"text": pa.nulls(2, pa.string())}))["v"].null_count == 2


def test_columns_and_dtype_are_chosen_and_other_columns_stay(model: Path) -> None:
    options = {"text_column": "title", "output_column": "v", "output_dtype": "float16"}
    embed = Embed(**options, options={"normalize": True}, model_dir=model, dtype="float32", device="cpu")
    table = embed(pa.table({"title": ["one", "two"], "v": [1, 2], "id": [7, 8]}))
    assert table.column_names == ["title", "v", "id"]
    assert table.schema.field("v").type.value_type == pa.float16()
    assert np.linalg.norm(vectors_of(table, "v").astype(np.float32), axis=1) == pytest.approx([1, 1], abs=1e-2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"output_dtype": "int8"}, ValueError, "output_dtype must be float32 or float16"),
        ({"server": {}, "dtype": "float32"}, TypeError, "the server has the model"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Embed(**given)


def test_wrong_columns_and_poolings_are_refused(model: Path) -> None:
    table = pa.table({"text": ["one", "two"]})
    with pytest.raises(ValueError, match=r"no column 'body': the columns are \['text'\]"):
        Embed(text_column="body", model_dir=model, device="cpu")(table)
    with pytest.raises(ValueError, match="another pooling than NONE"):
        Embed(options={"pooling_strategy": "NONE"}, model_dir=model, device="cpu")(table)


def test_the_lists_are_on_the_memory_of_the_vectors() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = fixed_size_lists(rows)
    assert array.flatten().buffers()[1].address == rows.ctypes.data
    assert array.to_pylist() == [[0, 1, 2], [3, 4, 5]]
