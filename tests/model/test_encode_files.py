"""bert-serving-encode: each row of the input has its vector, whatever happens on the way."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from bert_serving.server import Encoder
from bert_serving.server.cli import encode as command
from bert_serving.server.files import run
from bert_serving.server.files.engines import Computed, InProcess
from bert_serving.server.files.parts import Parts

from benchmarks.encode_files import memory_of
from tests.support.file_runs import wait_for_rows
from tests.support.sentences import sentences
from tests.support.tiny_models import make_model
from tests.support.waiting import HANG_S

Vectors: TypeAlias = Callable[[Sequence[str]], np.ndarray]
TEXTS = ['one, with a "quote"', "", "two ||| three", "vier äöü", "a long one " * 300, "7", 'one, with a "quote"']


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "bert", "bert")


@pytest.fixture(scope="module")
def expected(model: Path) -> Vectors:
    encoder = Encoder(model, dtype="float32", compile="off")
    return lambda texts: encoder.encode(list(texts), pairs=False)


@pytest.fixture
def encode(model: Path) -> Callable[..., int]:
    def call(*words: object) -> int:
        return command([*map(str, words), "-model_dir", str(model), "-dtype", "float32", "-compile", "off"])

    return call


def table() -> pa.Table:
    return pa.table(
        {"id": [f"{i:03}" for i in range(len(TEXTS))], "body": TEXTS, "stars": list(range(len(TEXTS)))}
    )


def as_jsonl(path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in table().to_pylist()))


def as_csv(path: Path) -> None:
    pa.csv.write_csv(table(), path)


def as_csv_gz(path: Path) -> None:
    memory = io.BytesIO()
    pa.csv.write_csv(table(), memory)
    path.write_bytes(gzip.compress(memory.getvalue()))


def as_parquet(path: Path) -> None:
    pa.parquet.write_table(table(), path)


def as_arrow(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table().schema) as writer:
        writer.write_table(table())


def vectors(path: Path) -> np.ndarray:
    column = pa.parquet.read_table(path)["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


WRITERS = {
    "x.jsonl": as_jsonl,
    "x.csv": as_csv,
    "x.csv.gz": as_csv_gz,
    "x.parquet": as_parquet,
    "x.arrow": as_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.filterwarnings("ignore:.*longer than max_seq_len")
def test_every_input_format(name: str, tmp_path: Path, encode: Callable[..., int], expected: Vectors) -> None:
    WRITERS[name](tmp_path / name)
    output = tmp_path / "out.parquet"
    assert encode(tmp_path / name, "-text_column", "body", "-columns", "id", "stars", "-o", output) == 0
    found = pa.parquet.read_table(output)
    assert found.schema.field("vector").type.list_size == expected(["a"]).shape[1]
    assert found["id"].to_pylist() == [f"{i:03}" for i in range(len(TEXTS))], "007 stays 007"
    assert np.allclose(vectors(output), expected(TEXTS), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.parquet"])


def test_lines_of_text_and_a_line_that_is_not_utf_8(
    tmp_path: Path, encode: Callable[..., int], expected: Vectors, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["one, two", 'with "quotes"', "", "ä"]
    (tmp_path / "x.txt").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\nlast\n")
    output = tmp_path / "out.parquet"
    assert encode(tmp_path / "x.txt", "-o", output) == 3
    assert "1 of 6 rows lack a vector" in capsys.readouterr().err
    column = pa.parquet.read_table(output)["vector"]
    assert [i for i, row in enumerate(column.to_pylist()) if row is None] == [4]
    good = np.array([row for row in column.to_pylist() if row is not None])
    assert np.allclose(good, expected([*lines, "last"]), atol=1e-6)
    reasons = Path(f"{output}.errors.jsonl").read_text().splitlines()
    where = {"row": 4, "file": str(tmp_path / "x.txt"), "line": 5}
    assert list(map(json.loads, reasons)) == [{**where, "error": "the text is not UTF-8"}]


@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".arrow"])
def test_every_output_format(ending: str, tmp_path: Path, encode: Callable[..., int], expected: Vectors) -> None:
    texts = [f"text {i}" for i in range(25)]
    (tmp_path / "x.txt").write_text("\n".join(texts))
    output = tmp_path / f"out{ending}"
    assert encode(tmp_path / "x.txt", "-window", 10, "-o", output) == 0
    if ending == ".npy":
        rows = np.load(output)
        assert rows.dtype == np.float32
    elif ending == ".jsonl":
        rows = np.array([json.loads(line)["vector"] for line in output.read_text().splitlines()])
    else:
        rows = np.array(pa.ipc.open_file(output).read_all()["vector"].to_pylist())
    assert np.allclose(rows, expected(texts), atol=1e-6)


def test_half_precision_a_folder_a_pattern_and_a_pipe(
    tmp_path: Path, encode: Callable[..., int], expected: Vectors, model: Path
) -> None:
    for name, text in (("b.txt", "two\nthree\n"), ("a.txt", "one\n")):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    rows = expected(["one", "two", "three"])
    for source in (tmp_path / "in", tmp_path / "in" / "*.txt"):
        output = tmp_path / "out.npy"
        assert encode(source, "-precision", "float16", "-o", output) == 0
        assert np.load(output).dtype == np.float16
        assert np.allclose(np.load(output), rows, atol=2e-3)
        output.unlink()
    program = [sys.executable, "-c", "import sys; from bert_serving.server.cli import encode; sys.exit(encode())"]
    words = ["-", "-o", str(output), "-model_dir", str(model), "-dtype", "float32", "-compile", "off"]
    done = subprocess.run(
        [*program, *words], input=b"one\ntwo\nthree", capture_output=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(output), rows, atol=1e-6)


def test_missing_texts_are_bad_rows_and_equal_ones_are_computed_once(
    tmp_path: Path, encode: Callable[..., int], expected: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a", None, "b", "a", "b", "a"]
    pa.parquet.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    computed: list[str] = []
    inner = InProcess.encode

    def counted(self: InProcess, some: Sequence[str]) -> Computed:
        computed.extend(some)
        return inner(self, some)

    monkeypatch.setattr(InProcess, "encode", counted)
    output = tmp_path / "out.npy"
    assert encode(tmp_path / "x.parquet", "-dedup", "-o", output) == 3
    assert computed == ["a", "b"]
    rows = np.load(output)
    assert np.isnan(rows[1]).all()
    assert np.allclose(np.delete(rows, 1, 0), expected(["a", "b", "a", "b", "a"]), atol=1e-6)


class Crash(Exception):
    pass


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, encode: Callable[..., int], expected: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text number {i}" for i in range(100)]
    (tmp_path / "x.txt").write_text("\n".join(texts))
    output = tmp_path / "out.parquet"
    words = (tmp_path / "x.txt", "-window", 8, "-columns", "text", "-o", output)
    inner = InProcess.encode
    computed: list[str] = []

    def crashing(self: InProcess, some: Sequence[str]) -> Computed:
        if len(computed) >= 40:
            raise Crash
        computed.extend(some)
        return inner(self, some)

    monkeypatch.setattr(InProcess, "encode", crashing)
    with pytest.raises(Crash):
        encode(*words)
    assert not output.exists()
    manifest = json.loads((tmp_path / "out.parquet.parts" / "manifest.json").read_text())
    assert manifest["rows"] == 40
    monkeypatch.undo()
    assert encode(*words, "-normalize") == 1, "vectors of other settings are not mixed in"
    first = set(computed)
    monkeypatch.setattr(InProcess, "encode", lambda self, some: (computed.extend(some), inner(self, some))[1])
    assert encode(*words) == 0
    assert len(computed) == 100, "nothing is computed twice"
    assert not first & set(computed[40:])
    assert pa.parquet.read_table(output)["text"].to_pylist() == texts
    assert np.allclose(vectors(output), expected(texts), atol=1e-6)


def test_a_numpy_file_can_be_opened_while_it_grows(
    tmp_path: Path, encode: Callable[..., int], expected: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text number {i}" for i in range(30)]
    (tmp_path / "x.txt").write_text("\n".join(texts))
    output, growing = tmp_path / "out.npy", tmp_path / "out.npy.parts/vectors.npy"
    inner, seen = Parts._write_manifest, []

    def crashing(self: Parts) -> None:
        if self.num_rows:
            seen.append(np.load(growing, mmap_mode="r"))
        if self.num_rows == 24:
            raise Crash  # the rows are in the file, and the manifest does not know
        inner(self)

    monkeypatch.setattr(Parts, "_write_manifest", crashing)
    words = (tmp_path / "x.txt", "-window", 8, "-o", output)
    with pytest.raises(Crash):
        encode(*words)
    monkeypatch.undo()
    assert [rows.shape[0] for rows in seen] == [8, 16, 24]
    assert np.allclose(seen[2], expected(texts[:24]), atol=1e-6)
    with growing.open("ab") as file:
        file.write(b"of a window that was not written completely")
    assert encode(*words) == 0
    assert np.allclose(np.load(output), expected(texts), atol=1e-6)
    assert output.stat().st_size == 128 + 4 * np.load(output).size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "x.txt"]


def test_a_numpy_file_needs_no_hard_links(
    tmp_path: Path, encode: Callable[..., int], expected: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_links(self: Path, target: Path) -> None:
        raise PermissionError("no hard links")

    monkeypatch.setattr(Path, "hardlink_to", without_links)
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    assert encode(tmp_path / "x.txt", "-o", tmp_path / "out.npy") == 0
    assert np.allclose(np.load(tmp_path / "out.npy"), expected(["one", "two"]), atol=1e-6)


def test_20_000_texts_are_the_encoder_s_bit_for_bit_after_a_kill_half_way(
    tmp_path: Path, model: Path, encode: Callable[..., int]
) -> None:
    window = 2000
    texts = [" ".join([*sentence.split()[: i % 12], str(i)]) for i, sentence in enumerate(sentences(20_000))]
    (tmp_path / "x.txt").write_text("\n".join(texts))
    output = tmp_path / "out.npy"
    words = [str(tmp_path / "x.txt"), "-o", str(output), "-window", str(window)]
    settings = ["-model_dir", str(model), "-dtype", "float32", "-compile", "off"]
    code = "import sys; from bert_serving.server.cli import encode; sys.exit(encode())"
    process = subprocess.Popen([sys.executable, "-c", code, *words, *settings], stderr=subprocess.PIPE)
    wait_for_rows(tmp_path / "out.npy.parts", len(texts) // 2, process)
    process.kill()
    process.communicate(timeout=HANG_S)
    assert not output.exists()
    assert encode(*words) == 0
    encoder = Encoder(model, dtype="float32", compile="off")
    starts = range(0, len(texts), window)
    expected = np.concatenate([encoder.encode(texts[i : i + window], pairs=False) for i in starts])
    assert np.array_equal(np.load(output), expected)


def test_the_memory_does_not_grow_with_the_file(tmp_path: Path, model: Path) -> None:
    early, peak = memory_of(60_000, model, tmp_path, window=1000)
    assert peak < early + 40, "MB"


def test_ctrl_c_leaves_what_is_finished(tmp_path: Path, model: Path, encode: Callable[..., int]) -> None:
    (tmp_path / "x.txt").write_text("\n".join(f"text number {i} " * 20 for i in range(20_000)))
    output = tmp_path / "out.npy"
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bert_serving.server.cli import encode; sys.exit(encode())"
    )
    words = [tmp_path / "x.txt", "-o", output, "-window", 64, "-model_dir", model, "-compile", "off"]
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True)
    wait_for_rows(tmp_path / "out.npy.parts", 128, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("a\n", ["-o", "out.pdf"], r"must end with .parquet, .arrow, .npy, .npz, .jsonl, got 'out.pdf'"),
        ("a\n", ["-o", "missing/out.npy"], "there is no folder missing"),
        ("a\n", ["-o", "out.npy", "-columns", "text"], "leave out -columns"),
        ("a\n", ["-o", "out.npy", "-text_column", "body"], "there is no column 'body'; the columns are text"),
        ("", ["-o", "out.npy"], "the input has no rows"),
        ("a\n", ["-o", "out.npy", "-pooling_strategy", "NONE"], "one vector for each text"),
        ("a\n", ["-o", "out.npy", "-prompt_name", "query"], "prompt_name must be one of the model's prompts"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    content: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    encode: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text(content)
    assert encode("x.txt", *words) == 1
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.splitlines()[-1].startswith("bert-serving-encode: ")


def test_a_missing_file_and_an_existing_output(
    tmp_path: Path, encode: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(tmp_path / "missing.txt", "-o", tmp_path / "out.npy") == 1
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "out.npy").write_text("precious")
    assert encode(tmp_path / "x.txt", "-o", tmp_path / "out.npy") == 1
    assert (tmp_path / "out.npy").read_text() == "precious"


def test_windows_hold_every_row_once() -> None:
    batches = [pa.record_batch({"text": [f"{i}-{j}" for j in range(i)]}) for i in (0, 3, 7, 1, 12)]

    everything = [text for batch in batches for text in batch["text"].to_pylist()]
    for size in (1, 4, 5, 100):
        for skip in (0, 1, 5, 10, 22):
            found = [each["text"].to_pylist() for each in run._windows(iter(batches), size, skip=skip)]
            assert [text for window in found for text in window] == everything[skip:]
            assert all(len(window) == size for window in found[:-1])
