"""Reads the texts of files, and the columns beside them, in batches: sizes beyond memory are no problem."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json

from .errors import FileError

_FORMATS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_PIPE = "-"
_BLOCK_BYTES = 16 << 20  # the longest line of a text file
_TEXT = "text"  # the only column of a file of lines
_NO_DELIMITER = "\x1f"  # a file of lines is read as CSV whose lines have one value


class Source:
    """The rows of files, in the order of the files and of their rows. Raises FileError.

    inputs: files, folders, patterns, or "-" for standard input. form: a format, or "auto". text_column: name of
    the column with the texts; None: "text", or the only one with strings. columns: those that are read beside it,
    ("*",) for all.
    """

    def __init__(self, inputs: Sequence[str], form: str, text_column: str | None, columns: Sequence[str]) -> None:
        self.paths = [] if list(inputs) == [_PIPE] else _files(inputs)
        if not self.paths and form == "auto":
            form = "txt"
        self._form = _form_of(self.paths) if form == "auto" else form
        try:
            schema = self._open()
        except (pa.ArrowException, OSError) as exc:
            raise FileError(f"cannot read {self._name}: {_line(exc)}") from exc
        self.text_column = _text_column(schema, text_column)
        kept = schema.names if list(columns) == ["*"] else list(columns)
        if missing := [name for name in kept if name not in schema.names]:
            raise FileError(f"there is no column {missing[0]!r}; the columns are {', '.join(schema.names)}")
        self.columns = list(dict.fromkeys(kept))
        self.schema = pa.schema([schema.field(name) for name in self.columns])

    @property
    def _name(self) -> str:
        return str(self.paths[0]) if self.paths else "standard input"

    @property
    def num_rows(self) -> int | None:
        """The number of rows; None if all of the input must be read to know it."""
        return self._dataset.count_rows() if self.paths and self._form in ("parquet", "arrow") else None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, each batch with the columns and the text column. Raises FileError."""
        wanted = list(dict.fromkeys([*self.columns, self.text_column]))
        try:
            yield from self._batches(wanted)
        except (pa.ArrowException, OSError) as exc:
            raise FileError(f"cannot read the input: {_line(exc)}") from exc

    def _open(self) -> pa.Schema:
        if not self.paths:
            self._reader = _pipe_reader(self._form)
            return self._reader.schema
        files = [str(path) for path in self.paths]
        dataset = pa.dataset.dataset(files, format=_dataset_format(self._form, self.paths))
        if self._form == "csv":
            # Values stay as they are in the file: 007 must not become a number.
            types = dict.fromkeys(dataset.schema.names, pa.string())
            dataset = pa.dataset.dataset(files, format=_dataset_format(self._form, self.paths, types))
        self._dataset = dataset
        return dataset.schema

    def _batches(self, wanted: list[str]) -> Iterator[pa.RecordBatch]:
        if not self.paths:
            for batch in self._reader:
                yield batch.select(wanted)
        else:
            yield from self._dataset.scanner(columns=wanted, batch_readahead=2, fragment_readahead=1).to_batches()


def texts_of(column: pa.ChunkedArray) -> tuple[list[str], dict[int, str]]:
    """Return the texts of a column, and why some rows have none, by their index; these have an empty text."""
    errors: dict[int, str] = {}
    texts: list[str] = []
    for i, value in enumerate(column.to_pylist()):
        text = value
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                errors[i] = "the text is not UTF-8"
        if text is None:
            errors[i] = "there is no text"
        elif not isinstance(text, str) and i not in errors:
            errors[i] = f"the text must be a string, got {type(text).__name__}"
        texts.append("" if i in errors else text)
    return texts, errors


def _files(inputs: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for name in inputs:
        if name == _PIPE:
            raise FileError("- must be the only input")
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                each for each in path.rglob("*") if each.is_file() and not each.name.startswith((".", "_"))
            )
            if not inside:
                raise FileError(f"there is no file in {name}")
            found += inside
        elif path.exists():
            found.append(path)
        elif matches := sorted(glob.glob(name, recursive=True)):
            found += [Path(match) for match in matches if Path(match).is_file()]
        else:
            raise FileError(f"there is no file {name}")
    if not found:
        raise FileError("there is no input")
    return found


def _form_of(paths: Sequence[Path]) -> str:
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
    return (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix.lower()


def _csv_options(form: str, delimiter: str, types: Mapping[str, pa.DataType] | None = None) -> dict[str, Any]:
    if form == "txt":
        return {
            "parse_options": pa.csv.ParseOptions(
                delimiter=_NO_DELIMITER, quote_char=False, double_quote=False, ignore_empty_lines=False
            ),
            "read_options": pa.csv.ReadOptions(column_names=[_TEXT], block_size=_BLOCK_BYTES),
            # As bytes, so that a line that is not UTF-8 is one bad row.
            "convert_options": pa.csv.ConvertOptions(column_types={_TEXT: pa.binary()}),
        }
    return {
        "parse_options": pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
        "convert_options": pa.csv.ConvertOptions(column_types=types),
    }


def _dataset_format(form: str, paths: Sequence[Path], types: Mapping[str, pa.DataType] | None = None) -> Any:
    if form in ("csv", "txt"):
        options = _csv_options(form, "\t" if _ending(paths[0]) == ".tsv" else ",", types)
        return pa.dataset.CsvFileFormat(**options)
    if form == "jsonl":
        return pa.dataset.JsonFileFormat(read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES))
    return {"parquet": "parquet", "arrow": "ipc"}[form]


def _pipe_reader(form: str) -> Any:
    pipe = sys.stdin.buffer
    if form in ("csv", "txt"):
        return pa.csv.open_csv(pipe, **_csv_options(form, ","))
    if form == "jsonl":
        return pa.json.open_json(pipe, read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES))
    if form == "arrow":
        return pa.ipc.open_stream(pipe)
    raise FileError(f"{form} cannot be read from a pipe")


def _text_column(schema: pa.Schema, name: str | None) -> str:
    if name is not None:
        if name not in schema.names:
            raise FileError(f"there is no column {name!r}; the columns are {', '.join(schema.names)}")
        return name
    strings = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if _TEXT in schema.names:
        return _TEXT
    if len(strings) == 1:
        return str(strings[0])
    raise FileError(f"which column has the texts? Use -text_column; the columns are {', '.join(schema.names)}")


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
