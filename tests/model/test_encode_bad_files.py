"""bert-serving-encode with files that are damaged, mixed, compressed or unusual, and with failing runs."""

from __future__ import annotations

import decimal
import fcntl
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from bert_serving.server import Encoder
from bert_serving.server.cli import encode as command
from bert_serving.server.files import outputs, rows, run
from bert_serving.server.files.engines import Computed, InProcess, _address, _slices
from bert_serving.server.files.errors import FileError
from bert_serving.server.files.parts import Parts
from bert_serving.server.number_formats import converted
from bert_serving.server.worker import device

from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S, wait_until

_PROGRAM = [sys.executable, "-c", "import sys; from bert_serving.server.cli import encode; sys.exit(encode())"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "bert", "bert")


@pytest.fixture(scope="module")
def settings(model: Path) -> list[str]:
    return ["-model_dir", str(model), "-dtype", "float32", "-compile", "off"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def encode(settings: list[str], folder: Path) -> Callable[..., int]:
    return lambda *words: command([*map(str, words), *settings])


@pytest.fixture(scope="module")
def expected(model: Path) -> Callable[[Sequence[str]], np.ndarray]:
    encoder = Encoder(model, dtype="float32", compile="off")
    return lambda texts: encoder.encode(list(texts), pairs=False)


def reasons(output: str) -> Mapping[int, str]:
    lines = map(json.loads, Path(f"{output}.errors.jsonl").read_text().splitlines())
    return {line["row"]: line["error"] for line in lines}


def places(output: str) -> list[dict[str, object]]:
    """Return where the bad rows of an output are."""
    lines = map(json.loads, Path(f"{output}.errors.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "error"} for line in lines]


def good_rows(output: str, bad: Sequence[int]) -> np.ndarray:
    found = pa.parquet.read_table(output)["vector"].to_pylist()
    assert [i for i, row in enumerate(found) if row is None] == list(bad)
    return np.array([row for row in found if row is not None])


class Crash(Exception):
    pass


def _crash(*_: object) -> None:
    raise Crash


# -- bad rows --------------------------------------------------------------------------------------------


def test_bad_lines_of_json_cost_no_other_line(encode: Callable[..., int], expected: Callable[..., Any]) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "good", "stars": 3, "when": "2024-01-02T03:04:05"}',
        b'{"text": "cut off',
        b"[1, 2]",
        b'{"text": 5, "stars": 1}',
        b'{"stars": 1}',
        b'{"text": "\xff", "stars": 1}',
        b"",
        b'{"text": "another type", "stars": "five"}',
        b'{"text": "last", "stars": null}',
    ]
    Path("x.jsonl").write_bytes(b"\n".join(lines))
    assert encode("x.jsonl", "-columns", "when", "-o", "o.parquet") == 3
    found = reasons("o.parquet")
    assert list(found) == [1, 2, 3, 4, 5]
    assert "the line is not JSON" in found[1]
    assert found[2] == "the line must be a JSON object, got list"
    assert found[3] == "the text must be a string, got int"
    assert found[4] == "there is no text"
    assert "the line is not JSON" in found[5]
    assert np.allclose(good_rows("o.parquet", list(found)), expected(["good", "another type", "last"]), atol=1e-6)
    assert pa.parquet.read_table("o.parquet")["when"][0].as_py() == "2024-01-02T03:04:05", "strings stay strings"


def test_a_value_of_another_type_than_in_the_first_lines_is_left_out(
    encode: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_ROWS_FOR_TYPES", 2)
    values = [1, 2, 3.5, "four", None, 6]
    Path("x.jsonl").write_text("".join(json.dumps({"text": "a", "n": value}) + "\n" for value in values))
    assert encode("x.jsonl", "-columns", "n", "-o", "o.parquet") == 3
    found = pa.parquet.read_table("o.parquet")
    assert found["n"].to_pylist() == [1, 2, None, None, None, 6]
    assert found["vector"].null_count == 0, "the texts are good"
    assert reasons("o.parquet") == {
        2: "column 'n' has int64 in the first rows, got 3.5",
        3: "column 'n' has int64 in the first rows, got 'four'",
    }


def test_a_column_of_several_types_can_only_be_left_out(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "two"}\n')
    assert encode("x.jsonl", "-columns", "n", "-o", "o.parquet") == 1
    said = capsys.readouterr().err
    assert "x.jsonl: column 'n' has values of several types, or numbers beyond 64 bits: leave it out" in said
    assert encode("x.jsonl", "-o", "o.parquet") == 0


def test_bad_rows_of_csv_cost_no_other_row(encode: Callable[..., int], expected: Callable[..., Any]) -> None:
    content = (
        b"id,text\n"
        b"007,one\n"
        b"1,too,many\n"
        b'2,"two\nlines, and ""quotes"""\n'
        b"\n"
        b"alone\n"
        b"3,\xff\n"
        b'4,"closed" too early\n'
        b"5,last\n"
        b'6,"never closed\n7,after it\n'
    )
    Path("x.csv").write_bytes(content)
    assert encode("x.csv", "-columns", "id", "-o", "o.parquet") == 3
    found = reasons("o.parquet")
    assert list(found) == [1, 3, 4, 5, 7]
    assert found[1] == "the row must have 2 values, as the first one, got 3"
    assert found[3] == "the row must have 2 values, as the first one, got 1"
    assert found[4] == "the text is not UTF-8"
    assert "is not CSV" in found[5]
    assert "is not CSV" in found[7]
    good = ["one", 'two\nlines, and "quotes"', "last", "after it"]
    assert np.allclose(good_rows("o.parquet", list(found)), expected(good), atol=1e-6)
    ids = pa.parquet.read_table("o.parquet")["id"].to_pylist()
    assert [ids[i] for i in (0, 2, 4, 6, 8)] == ["007", "2", "3", "5", "7"]


def test_a_quote_that_is_never_closed_costs_one_row(
    encode: Callable[..., int], expected: Callable[..., Any]
) -> None:
    good = [f"row {i}" for i in range(300)]
    lines = ["text,n", *(f"{text},1" for text in good[:100]), '"open,1', *(f"{text},1" for text in good[100:])]
    Path("x.csv").write_text("\n".join(lines))
    assert encode("x.csv", "-text_column", "text", "-o", "o.parquet") == 3
    assert list(reasons("o.parquet")) == [100]
    assert np.allclose(good_rows("o.parquet", [100]), expected(good), atol=1e-6)


def test_rows_of_csv_are_bounded(encode: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    many = "\n".join(["x,1"] * 60)
    Path("x.csv").write_text(f'text,n\n{"y" * 150},1\nsecond,2\n"open,3\n{many}\nlast,4\n')
    assert encode("x.csv", "-text_column", "text", "-columns", "text", "-o", "o.parquet") == 3
    found = reasons("o.parquet")
    assert list(found) == [0, 2]
    assert "longer than" in found[0]
    assert "is a closing quote missing?" in found[2]
    texts = pa.parquet.read_table("o.parquet")["text"].to_pylist()
    assert texts == [None, "second", None, *["x"] * 60, "last"]


def test_csv_in_several_windows_and_files(encode: Callable[..., int], expected: Callable[..., Any]) -> None:
    texts = [f"text {i}" for i in range(90)]
    for k in range(3):
        of_file = texts[30 * k : 30 * k + 30]
        header = ["id;text", "text;id", "text;id"][k]
        lines = [f"{i};{text}" if k == 0 else f"{text};{i}" for i, text in enumerate(of_file)]
        Path(f"{k}.csv").write_text("\n".join(["", header, *lines]))
    Path("empty.csv").write_text("")
    assert encode("0.csv", "empty.csv", "1.csv", "2.csv", "-delimiter", ";", "-window", 8, "-o", "o.npy") == 0
    assert np.allclose(np.load("o.npy"), expected(texts), atol=1e-6)


def test_a_text_column_that_is_guessed_is_named(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.jsonl").write_text('{"body": "a", "n": 1}\n')
    assert encode("x.jsonl", "-o", "o.npy") == 0
    assert "the texts are in the column 'body'" in capsys.readouterr().err
    Path("x.csv").write_text("id;body\n1;a\n")
    assert encode("x.csv", "-o", "o2.npy") == 1
    assert "the first line is one column, 'id;body': is -delimiter ';' missing?" in capsys.readouterr().err


def test_a_text_column_of_json_lines_may_come_later(
    encode: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_ROWS_FOR_TYPES", 2)
    Path("x.jsonl").write_text('{"id": "1"}\n{"id": "2"}\n{"id": "3", "body": "a"}\n')
    assert encode("x.jsonl", "-text_column", "body", "-columns", "body", "-o", "o.parquet") == 3
    assert pa.parquet.read_table("o.parquet")["body"].to_pylist() == [None, None, "a"]
    assert good_rows("o.parquet", [0, 1]).shape[0] == 1


def test_a_line_that_is_too_long_is_a_bad_row(
    encode: Callable[..., int], expected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    Path("x.txt").write_text("first\n" + "x" * 250 + "\n" + "y" * 100 + "\nlast")
    assert encode("x.txt", "-o", "o.parquet") == 3
    assert list(reasons("o.parquet")) == [1]
    assert np.allclose(good_rows("o.parquet", [1]), expected(["first", "y" * 100, "last"]), atol=1e-6)


@pytest.mark.parametrize("columns", [["-columns", "text"], []])
def test_only_bad_rows(columns: list[str], encode: Callable[..., int]) -> None:
    Path("x.txt").write_bytes(b"\xff\n\xfe\n")
    assert encode("x.txt", "-o", "o.parquet", "-dimensions", 4, *columns) == 3
    table = pa.parquet.read_table("o.parquet")
    assert table.schema.field("vector").type.list_size == 4
    assert table["vector"].null_count == 2


def test_strings_of_parquet_that_are_not_utf_8(encode: Callable[..., int]) -> None:
    broken = pa.array([b"good", b"\xff\xfe", None], pa.binary())
    texts = pa.StringArray.from_buffers(3, *broken.buffers()[1:], null_bitmap=broken.buffers()[0])
    with pa.OSFile("x.arrow", "wb") as file, pa.ipc.new_file(file, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch({"text": texts}))
    assert encode("x.arrow", "-columns", "text", "-o", "o.parquet") == 3
    assert reasons("o.parquet") == {1: "the text is not UTF-8", 2: "there is no text"}
    assert pa.parquet.read_table("o.parquet")["text"].to_pylist() == ["good", None, None]


# -- files -----------------------------------------------------------------------------------------------


def test_compressed_files(
    encode: Callable[..., int], expected: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.txt.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))  # two members, as `cat` joins
    for name, codec in (("x.txt.zst", "zstd"), ("x.txt.bz2", "bz2"), ("x.txt.lz4", "lz4")):
        with pa.CompressedOutputStream(name, codec) as file:
            file.write(b"one\ntwo\n")
    rows_of_two = expected(["one", "two"])
    for name in ("x.txt.gz", "x.txt.zst", "x.txt.bz2", "x.txt.lz4"):
        assert encode(name, "-o", f"{name}.npy") == 0, name
        assert np.allclose(np.load(f"{name}.npy"), rows_of_two, atol=1e-6)
    rng = np.random.default_rng(0)
    whole = gzip.compress("".join(f"{n}\n" for n in rng.integers(0, 1 << 60, 5000)).encode())
    Path("half.txt.gz").write_bytes(whole[: len(whole) // 2])
    assert encode("half.txt.gz", "-o", "half.npy") == 1, "a file that was cut is no complete file"
    assert "half.txt.gz" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_files_of_tables_may_be_compressed_as_a_whole(
    name: str, encode: Callable[..., int], expected: Callable[..., Any]
) -> None:
    table = pa.table({"text": ["one", "two"], "id": [1, 2]})
    if name == "x.parquet":
        pa.parquet.write_table(table, name)
    else:
        with pa.OSFile(name, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    Path("y").mkdir()
    for number in range(2):
        Path(f"y/{number}.{name[2:]}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    assert encode("y", "-text_column", "text", "-columns", "id", "-o", "y/o.parquet") == 0
    assert pa.parquet.read_table("y/o.parquet")["id"].to_pylist() == [1, 2, 1, 2]
    assert np.allclose(good_rows("y/o.parquet", []), expected(["one", "two"] * 2), atol=1e-6)
    assert sorted(os.listdir("y")) == [f"0.{name[2:]}.gz", f"1.{name[2:]}.gz", "o.parquet"]


def test_a_bad_row_is_named_by_its_file_and_line(encode: Callable[..., int]) -> None:
    Path("a.csv").write_text('text,id\n"two\nlines",1\none,2,3\n"never closed\nlast,4\n')
    Path("b.csv").write_text("text,id\n\none\n")
    assert encode("a.csv", "b.csv", "-o", "csv.npy") == 3
    assert places("csv.npy") == [
        {"row": 1, "file": "a.csv", "line": 4},
        {"row": 2, "file": "a.csv", "line": 5},
        {"row": 4, "file": "b.csv", "line": 3},
    ]
    Path("a.jsonl").write_text('{"text": "one"}\n\nnone\n{"text": "two"}\n{"id": 1}\n')
    assert encode("a.jsonl", "-o", "json.npy") == 3
    assert places("json.npy") == [
        {"row": 1, "file": "a.jsonl", "line": 3},
        {"row": 3, "file": "a.jsonl", "line": 5},
    ]
    Path("a.txt").write_bytes(b"one\n\xff\n")
    assert encode("a.txt", "a.txt", "-o", "text.npy") == 3
    assert places("text.npy") == [{"row": i, "file": "a.txt", "line": 2} for i in (1, 3)]
    for number in range(2):
        pa.parquet.write_table(pa.table({"text": ["one"] * 5000 + [None]}), f"{number}.parquet")
    assert encode("0.parquet", "1.parquet", "-dedup", "-window", 3000, "-o", "parquet.npy") == 3
    assert places("parquet.npy") == [
        {"row": 5000, "file": "0.parquet", "row_in_file": 5000},
        {"row": 10_001, "file": "1.parquet", "row_in_file": 5000},
    ]


def test_lists_and_objects_are_copied(encode: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_ROWS_FOR_TYPES", 1)
    good = {"tags": ["a", "b"], "user": {"id": 1, "height": 1.5, "is_new": True}, "none": {}, "empty": []}
    nothing = dict.fromkeys(good)
    fits: list[Any] = [{"tags": None, "user": {"id": 2}}, {"none": {}, "empty": ["x"]}]
    bad: list[Any] = [
        {"tags": [1]},
        {"user": {"id": 1.5}},
        {"user": {"x": 1}},
        {"user": {"height": (1 << 53) + 1}},
    ]
    lines = [json.dumps({"text": "a", **each}) for each in [good, *fits, *bad]]
    Path("x.jsonl").write_text("\n".join(lines))
    assert encode("x.jsonl", "-columns", *good, "-o", "o.jsonl") == 3
    assert list(reasons("o.jsonl")) == [3, 4, 5, 6]
    found = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert all(len(row.pop("vector")) == 64 for row in found)
    user = {"id": 2, "height": None, "is_new": None}
    assert found == [good, {**nothing, "user": user}, {**nothing, **fits[1]}, *[nothing] * 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.parquet.gz", "cannot read x.parquet.gz"),
        ("x.pdf", "the format of x.pdf is not clear from its name: use -input_format"),
        ("x.parquet", "cannot read x.parquet"),
        ("x.arrow", "cannot read x.arrow"),
        ("x.csv", "two columns have the name 'a'"),
        ("x.jsonl", "expected a JSON object in each line, got one JSON array"),
        ("x.txt", "the text is UTF-16"),
        ("y.txt", "the content is packed with gzip"),
        ("pipe.txt", "pipe.txt is not a file"),
        ("twice.arrow", "two columns have the name 'text'"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, message: str, encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"x.jsonl": b'[{"text": "a"}]', "x.txt": "a".encode("utf-16"), "y.txt": gzip.compress(b"a")}
    if name == "pipe.txt":
        os.mkfifo(name)
    elif name == "twice.arrow":
        schema = pa.schema([("text", pa.string()), ("text", pa.string())])
        with pa.OSFile(name, "wb") as file, pa.ipc.new_file(file, schema):
            pass
    else:
        Path(name).write_bytes(contents.get(name, b"a,a\n1,2\n"))
    assert encode(name, "-o", "o.npy") == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_files_of_one_run_have_the_same_columns(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("1.csv").write_text("id,text\n1,a\n")
    Path("2.csv").write_text("other,text\nb,2\n")
    assert encode("1.csv", "2.csv", "-columns", "id", "-o", "o.parquet") == 1
    assert "2.csv has no column 'id', which 1.csv has" in capsys.readouterr().err
    Path("1.jsonl").write_text('{"text": "a"}\n')
    Path("2.jsonl").write_text('{"id": 2, "text": "b"}\n')
    assert encode("1.jsonl", "2.jsonl", "-o", "o.npy") == 0, "objects may have more keys"
    Path("3.txt").write_text("c\n")
    assert encode("1.csv", "3.txt", "-o", "o2.npy") == 1
    assert "all files must have one format, got csv, txt" in capsys.readouterr().err


def test_types_of_several_files_are_brought_together(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, column in enumerate([pa.nulls(2), pa.array([1, 2], pa.int32()), pa.array([3, 4], pa.int64())]):
        pa.parquet.write_table(pa.table({"n": column, "text": ["a", "b"]}), f"{i}.parquet")
    files = ["0.parquet", "1.parquet", "2.parquet"]
    assert encode(*files, "-text_column", "text", "-columns", "n", "-window", 2, "-o", "o.parquet") == 0
    found = pa.parquet.read_table("o.parquet")["n"]
    assert found.to_pylist() == [None, None, 1, 2, 3, 4]
    pa.parquet.write_table(pa.table({"n": ["x", "y"], "text": ["a", "b"]}), "3.parquet")
    assert encode(*files, "3.parquet", "-text_column", "text", "-columns", "n", "-o", "o2.parquet") == 1
    assert "the columns of 3.parquet have other types than before" in capsys.readouterr().err


def test_json_holds_times_as_strings_and_nothing_that_it_cannot_hold(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {
        "text": ["a"],
        "when": pa.array([1], pa.timestamp("ns")),
        "price": pa.array([decimal.Decimal("150.00")]),
        "raw": pa.array([b"\xff"]),
    }
    pa.parquet.write_table(pa.table({**columns, "nested": [{"b": b"x"}]}), "x.parquet")
    assert encode("x.parquet", "-columns", "when", "price", "raw", "-o", "o.jsonl") == 0
    row = json.loads(Path("o.jsonl").read_text())
    assert (row["when"], row["price"], row["raw"]) == ("1970-01-01 00:00:00.000000001", "150.00", "/w==")
    assert encode("x.parquet", "-columns", "nested", "-o", "o2.jsonl") == 1
    assert "JSON cannot hold column 'nested'" in capsys.readouterr().err
    inside = pa.table(
        {"text": ["a"], "s": pa.StructArray.from_arrays([pa.array(["x"]).dictionary_encode()], ["c"])}
    )
    with pa.OSFile("y.arrow", "wb") as file, pa.ipc.new_file(file, inside.schema) as writer:
        writer.write_table(inside)
    assert encode("y.arrow", "-text_column", "text", "-columns", "s", "-o", "o3.arrow") == 1
    assert "column 's' has categories inside of values" in capsys.readouterr().err


def test_a_copied_string_that_is_not_utf_8_is_left_out(encode: Callable[..., int]) -> None:
    broken = pa.array([b"good", b"\xff\xfe", None], pa.binary())
    strings = pa.StringArray.from_buffers(3, *broken.buffers()[1:], null_bitmap=broken.buffers()[0])
    batch = pa.record_batch({"text": ["a", "b", "c"], "name": strings})
    with pa.OSFile("x.arrow", "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    assert encode("x.arrow", "-text_column", "text", "-columns", "name", "-o", "o.jsonl") == 3
    assert reasons("o.jsonl") == {1: "column 'name' is not UTF-8"}
    assert [json.loads(line)["name"] for line in Path("o.jsonl").read_text().splitlines()] == ["good", None, None]


def test_categories_are_written_as_their_values(encode: Callable[..., int], expected: Callable[..., Any]) -> None:
    schema = pa.schema(
        {"text": pa.dictionary(pa.int8(), pa.string()), "kind": pa.dictionary(pa.int8(), pa.string())}
    )
    with pa.OSFile("x.arrow", "wb") as file, pa.ipc.new_stream(file, schema) as writer:  # the stream format
        for text, kind in (("one", "a"), ("two", "b")):
            columns = [pa.array([text]).cast(schema.field(0).type), pa.array([kind]).cast(schema.field(1).type)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    assert encode("x.arrow", "-text_column", "text", "-columns", "kind", "-o", "o.parquet") == 0
    assert pa.parquet.read_table("o.parquet")["kind"].to_pylist() == ["a", "b"]
    assert np.allclose(good_rows("o.parquet", []), expected(["one", "two"]), atol=1e-6)


def test_a_folder_is_read_without_hidden_files_and_what_runs_have_left(
    encode: Callable[..., int], expected: Callable[..., Any]
) -> None:
    names = ["in/a.txt", "in/.b.txt", "in/_c/d.txt", "in/e.txt.parts/f.txt", "in/deep/g.txt", "in/README.md"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"{name}\n")
    assert encode("in", "-o", "in/o.npy") == 0
    assert np.allclose(np.load("in/o.npy"), expected(["in/a.txt", "in/deep/g.txt"]), atol=1e-6)


def test_a_folder_that_cannot_be_read_is_an_error(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("in/closed").mkdir(parents=True)
    Path("in/a.txt").write_text("a")
    scandir = os.scandir

    def refused(path: str) -> Any:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert encode("in", "-o", "o.npy") == 1
    assert "cannot read in/closed" in capsys.readouterr().err


def test_columns_that_the_output_cannot_hold_are_found_before_anything_is_computed(
    encode: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    months = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    with pa.OSFile("x.arrow", "wb") as file:
        table = pa.table({"text": ["a"], "months": months, "vector": ["taken"]})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    monkeypatch.setattr(InProcess, "encode", lambda *_: pytest.fail("computed"))
    assert encode("x.arrow", "-text_column", "text", "-columns", "months", "-o", "o.parquet") == 1
    assert "Parquet cannot hold these columns" in capsys.readouterr().err
    assert encode("x.arrow", "-text_column", "text", "-columns", "vector", "-o", "o2.parquet") == 1
    assert "the input has a column 'vector' too" in capsys.readouterr().err


# -- pipes -----------------------------------------------------------------------------------------------


def send(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content))))


def test_csv_and_arrow_come_through_a_pipe(
    encode: Callable[..., int], expected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = io.BytesIO()
    table = pa.table({"text": ["one", "two"]})
    with pa.ipc.new_stream(memory, table.schema) as writer:
        writer.write_table(table)
    for form, content in (("csv", b"id,text\n1,one\n2,two\n"), ("arrow", memory.getvalue())):
        send(content, monkeypatch)
        assert encode("-", "-input_format", form, "-text_column", "text", "-o", f"{form}.npy") == 0
        assert np.allclose(np.load(f"{form}.npy"), expected(["one", "two"]), atol=1e-6)


@pytest.mark.parametrize("others", [[], ["-precision", "float16"]])
def test_a_run_of_a_pipe_never_goes_on_with_another_pipe(
    others: list[str], encode: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        send(b"one\ntwo\n", patched)
        patched.setattr(run, "write_output", _crash)
        with pytest.raises(Crash):
            encode("-", "-o", "o.jsonl", "-columns", "text")
    assert json.loads(Path("o.jsonl.parts/manifest.json").read_text())["rows"] == 2
    send(b"three\nfour\n", monkeypatch)
    assert encode("-", "-o", "o.jsonl", "-columns", "text", *others) == 0
    assert [json.loads(line)["text"] for line in Path("o.jsonl").read_text().splitlines()] == ["three", "four"]


def test_a_pipe_that_is_silent_can_be_interrupted(settings: list[str], folder: Path) -> None:
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {_PROGRAM[2]}"
    words = [sys.executable, "-c", code, "-", "-o", "o.npy", *settings]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        # Then the model is loaded, and the pipe is read.
        wait_until(lambda: Path("o.npy.parts").exists() or process.poll() is not None)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, said
    assert "Traceback" not in said


# -- number formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_number_formats(precision: Any, encode: Callable[..., int], expected: Callable[..., Any]) -> None:
    texts = [f"text {i}" for i in range(7)]
    Path("x.txt").write_text("\n".join(texts))
    vectors = converted(expected(texts), precision)
    for name in ("o.npy", "o.npz", "o.arrow", "o.jsonl"):
        assert encode("x.txt", "-precision", precision, "-window", 3, "-o", name) == 0
    loaded = [np.load("o.npy"), np.load("o.npz")["vectors"]]
    assert all(found.dtype == vectors.dtype for found in loaded)
    loaded.append(np.array(pa.ipc.open_file("o.arrow").read_all()["vector"].to_pylist()))
    loaded.append(np.array([json.loads(line)["vector"] for line in Path("o.jsonl").read_text().splitlines()]))
    for found in loaded:
        assert found.shape == vectors.shape
        if precision == "float16":
            assert np.allclose(found, vectors, atol=2e-3)
        else:  # a component close to the border of two numbers may be on either side
            assert np.mean(found != vectors) < 0.01


def test_a_vector_that_is_too_large_for_float16_is_a_bad_row() -> None:
    vectors = np.array([[1, 2], [70_000, 1], [np.nan, np.nan]], np.float32)
    column, errors = run.to_column(Computed(vectors.copy(), {2: "no text"}, 0, []), "float16")
    assert errors == {1: "a component is too large for float16", 2: "no text"}
    assert column.is_null().to_pylist() == [False, True, True]
    assert run.to_column(Computed(vectors, {2: "no text"}, 0, []), "float32")[1] == {2: "no text"}


# -- trouble ---------------------------------------------------------------------------------------------


def test_cut_texts_are_counted(encode: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.txt").write_text("short\n" + "long " * 1000 + "\n" + "long " * 2000)
    assert encode("x.txt", "-o", "o.npy") == 0
    assert "2 of 3 texts are longer than max_seq_len and were cut" in capsys.readouterr().err
    Path("y.txt").write_text("short\n" + ("long " * 1000 + "\n") * 3)
    assert encode("y.txt", "-dedup", "-o", "o3.npy") == 0
    assert "3 of 4 texts are longer than max_seq_len and were cut" in capsys.readouterr().err
    assert encode("x.txt", "-long_text", "chunk", "-o", "o2.npy") == 0
    assert "were cut" not in capsys.readouterr().err


def test_two_runs_do_not_write_one_output(encode: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.txt").write_text("a")
    Path("o.npy.parts").mkdir()
    with Path("o.npy.parts/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert encode("x.txt", "-o", "o.npy") == 1
    assert "another run is writing o.npy" in capsys.readouterr().err
    assert encode("x.txt", "-o", "o.npy") == 0


def test_a_folder_of_others_is_not_touched(encode: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.txt").write_text("a")
    Path("o.npy.parts").mkdir()
    Path("o.npy.parts/precious.txt").write_text("b")
    assert encode("x.txt", "-o", "o.npy") == 1
    assert "o.npy.parts is not from this program" in capsys.readouterr().err
    assert Path("o.npy.parts/precious.txt").exists()


@pytest.mark.parametrize("manifest", ["", "{}", '{"version": 1}', '{"version": 2}'])
def test_a_manifest_that_cannot_be_read(
    manifest: str, encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.txt").write_text("a")
    Path("o.npy.parts").mkdir()
    Path("o.npy.parts/lock").touch()
    Path("o.npy.parts/manifest.json").write_text(manifest)
    assert encode("x.txt", "-o", "o.npy") == 1
    assert "o.npy.parts/manifest.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["input", "pipe", "-dtype", "-precision", "-columns", "-prompt", "-normalize"])
def test_a_run_goes_on_only_with_the_same_input_and_settings(
    change: str,
    encode: Callable[..., int],
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("x.txt").write_text("\n".join(map(str, range(20))))
    words = ["x.txt", "-window", "5", "-o", "o.parquet"]
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_output", _crash)
        with pytest.raises(Crash):
            encode(*words)
    others = {
        "-dtype": "bfloat16",
        "-precision": "float16",
        "-columns": "text",
        "-prompt": "query: ",
        "-normalize": "true",
    }
    if change == "input":
        Path("x.txt").write_text("\n".join(map(str, range(21))))
        assert encode(*words) == 1
    elif change == "pipe":
        send(b"0\n", monkeypatch)
        assert encode("-", *words[1:]) == 1
    else:
        assert command([*words, *settings, change, others[change]]) == 1
    other = "other input files" if change in ("input", "pipe") else "another"
    assert f"o.parquet.parts belongs to a run with {other}" in capsys.readouterr().err
    assert not Path("o.parquet").exists()


def test_a_crash_between_the_output_and_the_end_of_its_parts(
    encode: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.txt").write_bytes(b"a\n\xff\n")
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "remove", _crash)
        with pytest.raises(Crash):
            encode("x.txt", "-o", "o.npy")
    before = Path("o.npy").stat().st_mtime_ns
    assert encode("x.txt", "-o", "o.npy") == 3, "the outcome is the same"
    assert Path("o.npy").stat().st_mtime_ns == before, "it is not written again"
    assert not Path("o.npy.parts").exists()
    assert encode("x.txt", "-o", "o.npy") == 1, "an output is never overwritten"


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(settings: list[str], folder: Path) -> None:
    Path("x.txt").write_text("\n".join(map(str, range(400))))
    words = ["x.txt", "-window", "100", "-o", "o.npy", *settings]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, -1)); {_PROGRAM[2]}"
    full = subprocess.run(
        [sys.executable, "-c", limit, *words], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert full.returncode == 1, full.stderr
    assert "cannot write o.npy: OSError" in full.stderr
    assert "Traceback" not in full.stderr
    assert not Path("o.npy").exists()
    assert command([*words]) == 0
    assert len(np.load("o.npy")) == 400


def test_several_devices_share_the_texts(
    encode: Callable[..., int], expected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "every_device", lambda: ["cpu", "cpu"])
    shares: list[int] = []
    inner = InProcess._forward

    def counted(self: InProcess, encoder: Encoder, prepared: Sequence[Any]) -> Any:
        shares.append(len(prepared))
        return inner(self, encoder, prepared)

    monkeypatch.setattr(InProcess, "_forward", counted)
    texts = [f"text {i} " * (i + 1) for i in range(9)]
    Path("x.txt").write_text("\n".join(texts))
    assert encode("x.txt", "-o", "o.npy") == 0
    assert sorted(shares) == [4, 5]
    assert np.allclose(np.load("o.npy"), expected(texts), atol=1e-6)


def test_windows_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_WINDOW_BYTES", 1000)
    batches = [pa.record_batch({"text": ["x" * 300]}) for _ in range(10)]
    assert [len(window) for window in run._windows(iter(batches), 100, skip=0)] == [4, 4, 2]


@pytest.mark.parametrize("sizes", [[1] * 2500, [3 << 20] * 3, [5 << 20, 1, 1], [1]])
def test_requests_to_a_server_are_bounded(sizes: list[int]) -> None:
    texts = ["x" * size for size in sizes]
    found = [texts[some] for some in _slices(texts)]
    assert [text for request in found for text in request] == texts
    assert all(0 < len(request) <= 1024 for request in found)
    assert all(len(request) == 1 or sum(map(len, request)) <= 4 << 20 for request in found)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", ("host", 5555, 5556)),
        ("host:7000", ("host", 7000, 7001)),
        ("host:1:2", ("host", 1, 2)),
        ("[::1]:9", ("[::1]", 9, 10)),
    ],
)
def test_addresses(text: str, address: tuple[str, int, int]) -> None:
    assert _address(text) == address


@pytest.mark.parametrize("text", ["", ":5", "host:x", "host:1:2:3", "::1", "tcp://host:5"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(FileError, match="-server must be HOST"):
        _address(text)


def test_a_server_has_its_own_model(encode: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.txt").write_text("a")
    with pytest.raises(SystemExit):
        encode("x.txt", "-server", "localhost", "-o", "o.npy")
    assert "has no effect with server" in capsys.readouterr().err


def test_every_output_format_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    assert all(ending in page for ending in outputs._WRITERS)
