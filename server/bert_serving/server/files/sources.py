"""Reads the texts of files, and the columns beside them, batch by batch: sizes beyond memory are no problem."""

from __future__ import annotations

import glob
import io
import os
import shutil
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet

from ..model.errors import one_line
from .errors import FileError
from .rows import PLACE, REASON, TEXT, TEXT_FORMATS, TextRows, as_bytes, string_column

_FORMATS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_OF_RUNS = (".parts", ".partial", ".errors.jsonl")  # what this command writes beside its output
_PIPE = "-"
_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 4096
_BATCH_BYTES = 16 << 20


class Source:
    """The rows of files, in the order of the files and of their rows. Raises FileError.

    inputs: files, folders, patterns, or "-" for standard input. form: a format, or "auto". delimiter: between the
    values of CSV; None: the usual one. text_column: name of the column with the texts; None: "text", or the only
    one with strings. columns: those that are read beside it, ("*",) for all. output: is left out where a folder or
    a pattern has it.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        form: str,
        delimiter: str | None,
        text_column: str | None,
        columns: Sequence[str],
        output: Path,
    ) -> None:
        self.paths = [] if list(inputs) == [_PIPE] else _files(inputs, output, is_any_form=form != "auto")
        self._form = _form_of(self.paths) if form == "auto" else form
        self._delimiter = delimiter
        if delimiter is not None and self._form not in ("csv", "tsv"):
            raise FileError(f"delimiter is for CSV, and the input is {self._form}")
        with_content = [path for path in self.paths if path.stat().st_size]
        self.paths = with_content or self.paths  # Spark writes empty files, for example
        self._num_bytes = sum(path.stat().st_size for path in self.paths)
        self._bytes_read = 0
        self._file: io.FileIO | None = None
        self._folder = output.parent  # has room for the output, so also for a file that is unpacked
        self._first_rows: list[int] = []  # of each file that was begun
        self._pipe: TextRows | pa.RecordBatchStreamReader | None = None
        self._schema = self._of_pipe() if not self.paths else self._schema_of(self.paths[0])
        names = self._schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise FileError(f"two columns have the name {twice[0]!r}")
        may_come_later = self._form == "jsonl"
        self.text_column = _text_column(self._schema, text_column, may_come_later=may_come_later)
        kept = names if list(columns) == ["*"] else list(dict.fromkeys(columns))
        if missing := [name for name in kept if name not in [*names, self.text_column]]:
            raise FileError(f"there is no column {missing[0]!r}; the columns are {', '.join(names)}")
        self.columns: list[str] = kept
        if self._form not in ("txt", "jsonl"):
            self._types = self._common_types()

    def _of_pipe(self) -> pa.Schema:
        if sys.stdin is None:
            raise FileError("there is no standard input")
        pipe = cast("io.BufferedReader", sys.stdin.buffer)
        if self._form == "parquet":
            raise FileError("parquet cannot be read from a pipe: use a file, or send Arrow")
        with _named("standard input"):
            if self._form == "arrow":
                self._pipe = pa.ipc.open_stream(pipe)
            else:
                self._pipe = TextRows(pipe, self._form, self._delimiter)
        return self._pipe.schema

    def _schema_of(self, path: Path) -> pa.Schema:
        with _named(path):
            if self._form == "parquet":
                with self._unpacked_file(path) as plain:
                    return pa.parquet.read_schema(plain)
            if self._form == "arrow":
                with self._unpacked_file(path) as plain, pa.memory_map(str(plain)) as file:
                    return _arrow_batches(file)[0]
            with path.open("rb", buffering=0) as raw:
                return TextRows(_unpacked(raw, path), self._form, self._delimiter).schema

    def _common_types(self) -> dict[str, pa.DataType]:
        """Return the types of the copied columns: those that all files' types can be converted to."""
        wanted = [name for name in self.columns if name != self.text_column]
        common = pa.schema([_decoded_field(self._schema.field(name)) for name in wanted])
        for path in self.paths[1:]:
            schema = self._schema_of(path)
            if missing := [name for name in [self.text_column, *wanted] if name not in schema.names]:
                raise FileError(f"{path} has no column {missing[0]!r}, which {self.paths[0]} has")
            fields = pa.schema([_decoded_field(schema.field(name)) for name in wanted])
            try:
                common = pa.unify_schemas([common, fields], promote_options="permissive")
            except pa.ArrowException as exc:
                raise FileError(f"the columns of {path} have other types than before: {one_line(exc)}") from exc
        return {field.name: field.type for field in common}

    def num_rows(self, done: int) -> int | None:
        """Return the number of rows; of a text file, an estimate from its beginning; None of a pipe.

        done: the number of rows that were read.
        """
        if not self.paths:
            return None
        if self._form not in TEXT_FORMATS:
            return self._num_rows
        read = self._bytes_read + (self._file.tell() if self._file is not None else 0)
        return round(done * self._num_bytes / read) if read else None

    @cached_property
    def _num_rows(self) -> int:
        found = 0
        for path in self.paths:
            with _named(path), self._unpacked_file(path) as plain:
                if self._form == "parquet":
                    found += pa.parquet.read_metadata(plain).num_rows
                else:
                    with pa.memory_map(str(plain)) as file:
                        found += sum(map(len, _arrow_batches(file)[1]))
        return found

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows: the columns, the text column as strings or nulls, REASON and PLACE. Raises FileError."""
        if not self.paths:
            with _named("standard input"):
                yield from self._rows_of_pipe()
        num_rows = 0
        for path in self.paths:
            self._first_rows.append(num_rows)
            with _named(path):
                for batch in self._of_file(path):
                    num_rows += len(batch)
                    yield batch
            self._bytes_read += path.stat().st_size

    def place(self, row: int, inside: int) -> Mapping[str, object]:
        """Return where a row of batches() is: its file and line, or its file and row there.

        row: its number. inside: its PLACE.
        """
        unit = "line" if self._form in TEXT_FORMATS else "row_in_file"
        if not self.paths:
            return {unit: inside}
        return {"file": str(self.paths[bisect_right(self._first_rows, row) - 1]), unit: inside}

    def _rows_of_pipe(self) -> Iterator[pa.RecordBatch]:
        if isinstance(self._pipe, TextRows):
            yield from self._pipe.batches(self.text_column, self.columns)
            return
        yield from self._with_reasons(self._pipe or ())

    def _of_file(self, path: Path) -> Iterator[pa.RecordBatch]:
        if self._form == "parquet":
            with (
                self._unpacked_file(path) as plain,
                pa.parquet.ParquetFile(plain, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
            ):
                wanted = list(dict.fromkeys([self.text_column, *self.columns]))
                yield from self._with_reasons(file.iter_batches(_num_rows(file), columns=wanted))
        elif self._form == "arrow":
            with self._unpacked_file(path) as plain, pa.memory_map(str(plain)) as file:
                yield from self._with_reasons(_arrow_batches(file)[1])
        else:
            with path.open("rb", buffering=0) as raw:
                self._file = raw
                content = _unpacked(raw, path)  # closes `raw` when it is deleted
                rows = TextRows(content, self._form, self._delimiter, self._schema)
                yield from rows.batches(self.text_column, self.columns)
                self._file = None

    @contextmanager
    def _unpacked_file(self, path: Path) -> Iterator[Path]:
        """Give the name of a file with the content of one that may be compressed as a whole."""
        if path.suffix.lower() not in _COMPRESSIONS:
            yield path
            return
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".partial") as plain:
            with path.open("rb", buffering=0) as raw:
                shutil.copyfileobj(_unpacked(raw, path), plain, _BUFFER_BYTES)
            plain.flush()
            yield Path(plain.name)

    def _with_reasons(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield batches in small ones, with the text column as strings, REASON and PLACE."""
        num_rows = 0
        for batch in batches:
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * len(batch) // (batch.nbytes or 1)))
            for start in range(0, len(batch), size):
                some = batch.slice(start, size)
                reasons: list[str | None] = [None] * len(some)
                texts = as_bytes(_decoded(some[self.text_column]))
                columns = {name: self._column(some[name], name, reasons) for name in self.columns}
                columns[self.text_column] = string_column(texts.to_pylist(), reasons)
                places = pa.array(range(num_rows, num_rows + len(some)), pa.int64())
                num_rows += len(some)
                yield pa.record_batch({**columns, REASON: pa.array(reasons, pa.string()), PLACE: places})

    def _column(self, column: pa.Array, name: str, reasons: list[str | None]) -> pa.Array:
        """Return a copied column with the type that it has in all files."""
        if name == self.text_column:
            return column  # is replaced
        column = _decoded(column)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)  # Arrow does not check that strings are UTF-8
            except pa.ArrowInvalid:
                is_null = column.is_null().to_pylist()
                column = string_column(as_bytes(column).to_pylist(), [None] * len(column))
                for i in range(len(column)):
                    if column[i].as_py() is None and not is_null[i] and reasons[i] is None:
                        reasons[i] = f"column {name!r} is not UTF-8"
        return column.cast(self._types[name])


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Turn the errors of readers into FileError with the name of the file."""
    try:
        yield
    except FileError as exc:
        raise FileError(f"{path}: {exc}") from exc
    except (pa.ArrowException, OSError, UnicodeError, EOFError, RecursionError) as exc:
        raise FileError(f"cannot read {path}: {one_line(exc)}") from exc


def _unpacked(raw: io.FileIO, path: Path) -> io.BufferedReader:
    """Return the content of a file, which may be compressed."""
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return io.BufferedReader(raw, _BUFFER_BYTES)
    packed = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
    return io.BufferedReader(packed, _BUFFER_BYTES)


def _arrow_batches(file: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema and the batches of a file in Arrow's file format or stream format."""
    try:
        reader = pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    return reader.schema, map(reader.get_batch, range(reader.num_record_batches))


def _decoded(column: pa.Array) -> pa.Array:
    """Return a column with its categories as values: each batch of a file may have other categories."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _decoded_field(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _num_rows(file: pa.parquet.ParquetFile) -> int:
    """Return how many rows of a Parquet file are read at once, so that long texts do not fill the memory."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))


def _files(inputs: Sequence[str], output: Path, *, is_any_form: bool) -> list[Path]:
    """Return the files that inputs name. is_any_form: of a folder, also those whose names show no format."""
    found: list[Path] = []
    for name in inputs:
        if name == _PIPE:
            raise FileError("- must be the only input")
        path = Path(name)
        if path.is_dir():
            inside = sorted(_data_in(path))
            inside = [each for each in inside if is_any_form or _ending(each) in _FORMATS]
        elif path.exists():
            if not path.is_file():
                raise FileError(f"{name} is not a file: to read a pipe, redirect it and use -")
            found.append(path)
            continue
        elif not (inside := sorted(map(Path, glob.glob(name, recursive=True)))):
            raise FileError(f"there is no file {name}")
        inside = [each for each in inside if each.is_file() and not _is_of_a_run(each, output)]
        if not inside:
            raise FileError(f"there is no input in {name}")
        found += inside
    return found


def _data_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its folders that are neither hidden nor what a run has left."""

    def fail(error: OSError) -> None:
        raise FileError(f"cannot read {error.filename}: {one_line(error)}")

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = filter(_is_data, folders)
        yield from (Path(place, name) for name in names if _is_data(name))


def _is_data(name: str) -> bool:
    return not name.startswith((".", "_")) and not name.endswith(_OF_RUNS)


def _is_of_a_run(path: Path, output: Path) -> bool:
    return path.name.endswith(_OF_RUNS) or path.resolve() == output.resolve()


def _form_of(paths: Sequence[Path]) -> str:
    if not paths:
        return "txt"
    forms = {path: _FORMATS.get(_ending(path)) for path in paths}
    unknown = [path for path, form in forms.items() if form is None]
    if unknown:
        raise FileError(f"the format of {unknown[0]} is not clear from its name: use -input_format")
    if len(set(forms.values())) > 1:
        raise FileError(
            f"all files must have one format, got {', '.join(sorted({str(f) for f in forms.values()}))}"
        )
    return str(next(iter(forms.values())))


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() in _COMPRESSIONS else path).suffix.lower()


def _text_column(schema: pa.Schema, name: str | None, *, may_come_later: bool) -> str:
    names = schema.names
    if name is not None:
        if name not in names and not may_come_later:
            raise FileError(f"there is no column {name!r}; the columns are {', '.join(names)}")
        return name
    if TEXT in names or not names:  # an empty file has no columns
        return TEXT
    strings = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if len(names) == 1 and (others := set(";\t|") & set(names[0])):
        raise FileError(f"the first line is one column, {names[0]!r}: is -delimiter {min(others)!r} missing?")
    if len(strings) == 1:
        return str(strings[0])
    raise FileError(f"which column has the texts? Use -text_column; the columns are {', '.join(names)}")
