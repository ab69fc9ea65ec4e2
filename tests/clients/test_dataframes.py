"""The examples for Dask and Spark give the encoder's vectors and survive a kill. Spark: `make clients`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from bert_serving.server import Encoder
from environments import folder_of

from tests.support.sentences import sentences
from tests.support.tiny_models import make_model

_EXAMPLES = Path(__file__).parents[2] / "examples"
_NUM_FILES, _FILE_ROWS, _BATCH_ROWS = 10, 2000, 1000  # both examples compute batches of 1,000 rows
_SPARK = [pytest.mark.slow_clients, pytest.mark.timeout(1200)]


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """The order of sums depends on the number of threads, and the examples compute with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["dask_job.py"], id="dask"),
        pytest.param(["spark_job.py"], id="spark", marks=_SPARK),
        pytest.param(["spark_job.py", "--udf"], id="spark-udf", marks=_SPARK),
    ],
)
@pytest.mark.usefixtures("_one_thread")
def test_20_000_texts_are_the_encoder_s_bit_for_bit_after_a_kill_half_way(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    long_texts = sentences(_NUM_FILES * _FILE_ROWS)
    texts = [" ".join([*text.split()[: i % 9], str(i)]) for i, text in enumerate(long_texts)]
    source, target = tmp_path / "texts", tmp_path / "vectors"
    source.mkdir()
    for i in range(_NUM_FILES):
        of_file = texts[i * _FILE_ROWS : (i + 1) * _FILE_ROWS]
        table = pa.table({"id": range(i * _FILE_ROWS, (i + 1) * _FILE_ROWS), "body": of_file})
        pa.parquet.write_table(table, source / f"{i}.parquet", row_group_size=_BATCH_ROWS)
    model = make_model(tmp_path / "bert", "bert")
    options = ["--text_column", "body", "--model_dir", str(model), "--dtype", "float32", "--compile", "off"]
    command = [sys.executable, str(_EXAMPLES / words[0]), *words[1:], str(source), str(target), *options]
    environment = dict(os.environ)
    if words[0] == "spark_job.py":
        environment |= {"PYTHONPATH": str(folder_of("spark")), "PYSPARK_PYTHON": sys.executable}

    written: list[str] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        while len(written) < _NUM_FILES // 2 and (line := job.stdout.readline()):
            written.append(line.split()[-1])
        job.kill()
    assert len(written) == _NUM_FILES // 2
    before = {name: (target / name).stat().st_mtime_ns for name in written}

    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    assert {name: (target / name).stat().st_mtime_ns for name in written} == before, "nothing is written twice"
    found = pa.concat_tables(
        pa.parquet.read_table(target / f"{i}.parquet").select(["id", "body", "vector"]) for i in range(_NUM_FILES)
    )
    assert found["id"].to_pylist() == list(range(len(texts)))
    assert found["body"].to_pylist() == texts
    encoder = Encoder(model, dtype="float32", compile="off")
    starts = range(0, len(texts), _BATCH_ROWS)
    expected = np.concatenate([encoder.encode(texts[i : i + _BATCH_ROWS], pairs=False) for i in starts])
    vectors = found["vector"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)
    assert np.array_equal(vectors, expected)
