"""Embed adds the encoder's vectors to Arrow tables and batches, also in other processes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bert_serving.server import Encoder
from bert_serving.server.files import Embed, FileError, embed
from bert_serving.server.files.arrays import vector_column
from bert_serving.server.files.engines import InProcess

from tests.support.tiny_models import make_model

TEXTS = ["one", "two ||| three", "", "four " * 50]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_model(tmp_path_factory.mktemp("model") / "bert", "bert")
    return {"model_dir": str(folder), "dtype": "float32", "compile": "off"}


def vectors(column: Any) -> np.ndarray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy().reshape(len(array), -1)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_tables_and_batches_get_the_vectors_of_the_encoder(make: Any, kind: Any, options: dict[str, Any]) -> None:
    added = Embed("body", "embedding", **options)
    found = added(make({"id": [4, 3, 2, 1], "body": pa.array(TEXTS).cast(kind)}))
    assert type(found) is type(make({"id": [1]}))
    assert found.schema.names == ["id", "body", "embedding"]
    assert found.schema.field("embedding") == added.field
    expected = Encoder(**options).encode(TEXTS, pairs=False)
    assert np.array_equal(vectors(found["embedding"]), expected)


def test_a_copy_in_another_process_computes_with_the_same_model(options: dict[str, Any]) -> None:
    first = Embed(**options)
    copy = pickle.loads(pickle.dumps(first))
    tables = [pa.table({"text": [text]}) for text in TEXTS * 5]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(copy, tables))
    assert embed._engine_of.cache_info().currsize >= 1
    assert copy._engine is first._engine, "a process loads a model once"
    alone = [first(table)["vector"] for table in tables]
    assert all(np.array_equal(vectors(a["vector"]), vectors(b)) for a, b in zip(found, alone, strict=True))


@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_a_text_that_is_not_utf_8_has_no_vector(make: Any, options: dict[str, Any]) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    assert Embed(**options)(make({"text": texts}))["vector"].is_null().to_pylist() == [False, True]


def test_a_row_without_a_text_has_no_vector(options: dict[str, Any]) -> None:
    found = Embed(**options, precision="float16")(pa.table({"text": ["a", None, "b"]}))["vector"]
    assert found.type == pa.list_(pa.float16(), 64)
    assert found.is_null().to_pylist() == [False, True, False]
    empty = Embed(**options)(pa.table({"text": pa.array([], pa.string())}))
    assert empty["vector"].type == pa.list_(pa.float32(), 64)


def test_equal_texts_are_computed_once(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    inner = InProcess.encode
    monkeypatch.setattr(InProcess, "encode", lambda self, texts: (computed.extend(texts), inner(self, texts))[1])
    Embed(**options, dedup=True)(pa.table({"text": ["a", "b", "a"]}))
    assert computed == ["a", "b"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_seq_len": 1}, "max_seq_len"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"columns": ("a",)}, "columns is an option of files, not of tables"),
        ({"server": "localhost"}, "has no effect with server"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(FileError, match=message):
        Embed(**options, **wrong)


def test_a_column_of_that_name_is_replaced(options: dict[str, Any]) -> None:
    found = Embed(**options)(pa.table({"vector": [1], "text": ["a"]}))
    assert found.schema.names == ["vector", "text"]
    assert found.schema.field("vector").type == pa.list_(pa.float32(), 64)


def test_the_lists_are_on_the_memory_of_the_vectors() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = vector_column(rows, [])
    assert array.flatten().buffers()[1].address == rows.ctypes.data
    assert array.to_pylist() == [[0, 1, 2], [3, 4, 5]]


def test_a_column_that_is_not_there(options: dict[str, Any]) -> None:
    with pytest.raises(FileError, match="there is no column 'body'; there are text"):
        Embed("body", **options)(pa.table({"text": ["a"]}))
