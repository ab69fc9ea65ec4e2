"""The rows of text formats: lines, JSON lines, CSV. A row that cannot be read has a reason instead of values.

Python's csv and orjson read row by row, so a bad row costs no other one; Arrow's readers end at the first bad row.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO, NamedTuple

import orjson
import pyarrow as pa

from .errors import FileError

TEXT = "text"  # the only column of a file of lines
REASON = "\0reason"  # the column that says why a row has no text; null if it has one
PLACE = "\0place"  # the column with the line where a row begins, from 1; in tables: its number, from 0
MAX_ROW_BYTES = 16 << 20

_BATCH_ROWS = 4096
_BATCH_BYTES = 4 << 20
_ROWS_FOR_TYPES = 1024
_BOM = b"\xef\xbb\xbf"
_SEVERAL = pa.null()  # of a column that has values of several types
_DELIMITERS = {"csv": ",", "tsv": "\t"}
TEXT_FORMATS = ("txt", "jsonl", *_DELIMITERS)


class Row(NamedTuple):
    """The values of a row by their columns; or why there are none.

    line: where it begins, from 1. size: about its number of bytes.
    """

    line: int
    values: Mapping[str, Any]
    reason: str | None
    size: int


class TextRows:
    """The rows of a stream in a text format.

    form: one of TEXT_FORMATS. delimiter: between the values of CSV. schema: the types of the columns, as the first
    file has them; None: those of CSV are strings, and those of JSON lines are what the first rows have. Raises
    FileError.
    """

    def __init__(
        self, stream: io.BufferedReader, form: str, delimiter: str | None = None, schema: pa.Schema | None = None
    ) -> None:
        _check_beginning(stream.peek(4)[:4], form)
        if form in _DELIMITERS:
            csv_rows = _CsvRows(stream, delimiter or _DELIMITERS[form])
            self._rows: Iterator[Row] = csv_rows.rows()
            self.schema = pa.schema([(name, pa.string()) for name in csv_rows.names])
        elif form == "jsonl":
            self._rows = _json_rows(stream)
            if schema is None:
                first = list(islice(self._rows, _ROWS_FOR_TYPES))
                self._rows = chain(first, self._rows)
                schema = _schema_of([row.values for row in first])
            self.schema = schema
        else:
            self._rows = _text_rows(stream)
            self.schema = pa.schema([(TEXT, pa.string())])

    def batches(self, text_column: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches with the column of the texts, the other columns, REASON and PLACE."""
        texts = pa.field(text_column, pa.string())
        wanted = [texts if name == text_column else self.schema.field(name) for name in columns]
        if text_column not in columns:
            wanted.append(texts)
        if unclear := [field.name for field in wanted if field.type == _SEVERAL]:
            several = "values of several types, or numbers beyond 64 bits"
            raise FileError(f"column {unclear[0]!r} has {several}: leave it out of -columns")
        for rows in _batches(self._rows):
            yield _batch_of(rows, text_column, wanted)


def _check_beginning(head: bytes, form: str) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FileError("the text is UTF-16: convert it to UTF-8")
    if head[:2] == b"\x1f\x8b":
        raise FileError("the content is packed with gzip: unpack it, or give the file a name that ends with .gz")
    if form == "jsonl" and head.lstrip()[:1] == b"[":
        raise FileError("expected a JSON object in each line, got one JSON array")


def _lines(stream: BinaryIO, *, keep_ends: bool = False) -> Iterator[tuple[bytes, str | None]]:
    """Yield each line, without its end unless keep_ends; or the reason why it cannot be read."""
    is_first = True
    while line := stream.readline(MAX_ROW_BYTES + len(b"\r\n")):
        if is_first:
            line, is_first = line.removeprefix(_BOM), False
        if line.endswith(b"\n") or len(line) <= MAX_ROW_BYTES:
            yield line if keep_ends else line.removesuffix(b"\n").removesuffix(b"\r"), None
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_ROW_BYTES)
        yield b"", f"the line is longer than {MAX_ROW_BYTES >> 20} MiB"


def _text_rows(stream: BinaryIO) -> Iterator[Row]:
    for number, (line, reason) in enumerate(_lines(stream), 1):
        yield _text_row(number, line) if reason is None else Row(number, {}, reason, 0)


def _text_row(number: int, line: bytes) -> Row:
    try:
        return Row(number, {TEXT: line.decode()}, None, len(line))
    except UnicodeDecodeError:
        return Row(number, {}, "the text is not UTF-8", 0)


def _json_rows(stream: BinaryIO) -> Iterator[Row]:
    for number, (line, reason) in enumerate(_lines(stream), 1):
        if reason is not None:
            yield Row(number, {}, reason, 0)
        elif line.strip():
            yield _json_row(number, line)


def _json_row(number: int, line: bytes) -> Row:
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        return Row(number, {}, f"the line is not JSON: {exc}", 0)
    if not isinstance(values, dict):
        return Row(number, {}, f"the line must be a JSON object, got {type(values).__name__}", 0)
    return Row(number, values, None, len(line))


class _CsvRows:
    """The rows of a stream of CSV, and the names of its columns.

    A row that cannot be read ends at the end of its first line: a quote that is never closed costs one line, not
    the rest of the file.
    """

    def __init__(self, stream: BinaryIO, delimiter: str) -> None:
        csv.field_size_limit(MAX_ROW_BYTES)
        self._lines = _lines(stream, keep_ends=True)
        self._num_lines = 0
        self._again: deque[str] = deque()  # lines that are read once more
        self._of_row: list[str] = []  # the lines of the current row
        self._size = 0
        self._delimiter = delimiter
        self._reader = csv.reader(self, delimiter=delimiter, strict=True)
        while (names := self._next_row()) == []:
            pass  # an empty line
        if isinstance(names, str):
            raise FileError(f"the first line must have the names of the columns: {names}")
        self.names = names or []
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise FileError(f"two columns have the name {twice[0]!r}")

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        while True:
            line = self._num_lines - len(self._again) + 1
            if (values := self._next_row()) is None:
                return
            if isinstance(values, list) and values and len(values) != len(self.names):
                values = f"the row must have {len(self.names)} values, as the first one, got {len(values)}"
            if isinstance(values, str):
                self._again.extendleft(reversed(self._of_row[1:]))
                yield Row(line, {}, values, 0)
            elif values:
                yield Row(line, dict(zip(self.names, values, strict=True)), None, sum(map(len, values)))

    def _next_row(self) -> list[str] | str | None:
        """Return the values of the next row; or why it cannot be read; or None at the end."""
        self._of_row, self._size = [], 0
        try:
            return next(self._reader, None)
        except csv.Error as exc:
            # A new one, because this one may be inside of a quoted value.
            self._reader = csv.reader(self, delimiter=self._delimiter, strict=True)
            return f"the row is not CSV: {exc}"
        except _TooLongError as exc:
            self._reader = csv.reader(self, delimiter=self._delimiter, strict=True)
            return str(exc)

    def __iter__(self) -> _CsvRows:
        return self

    def __next__(self) -> str:
        """Return the next line, for the csv module."""
        if self._again:
            line = self._again.popleft()
        else:
            content, reason = next(self._lines)
            self._num_lines += 1
            if reason is not None:
                self._of_row.append("")
                raise _TooLongError(reason)
            line = content.decode(errors="surrogateescape")  # a text that is not UTF-8 is found later
        self._of_row.append(line)
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            raise _TooLongError(f"the row is longer than {MAX_ROW_BYTES >> 20} MiB: is a closing quote missing?")
        return line


class _TooLongError(Exception):
    """A row or a line is too long."""


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    waiting: list[Row] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += row.size
        if len(waiting) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _batch_of(rows: Sequence[Row], text_column: str, wanted: Sequence[pa.Field]) -> pa.RecordBatch:
    reasons = [row.reason for row in rows]
    columns = []
    for field in wanted:
        values = [row.values.get(field.name) for row in rows]
        if field.name == text_column:
            columns.append(string_column(values, reasons))
        else:
            columns.append(_column(values, field, reasons))
    schema = pa.schema([*wanted, (REASON, pa.string()), (PLACE, pa.int64())])
    lines = pa.array([row.line for row in rows], pa.int64())
    return pa.record_batch([*columns, pa.array(reasons, pa.string()), lines], schema=schema)


def as_bytes(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return strings as their bytes, because Arrow does not check that they are UTF-8; other types as they are."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.cast(pa.large_binary()) if is_text else column


def string_column(values: Sequence[object], reasons: list[str | None]) -> pa.Array:
    """Return texts as a column. Where one is missing, write the reason, unless the row has one already."""
    found: list[str | None] = []
    for i, value in enumerate(values):
        text, reason = _checked(value)
        found.append(text)
        if reasons[i] is None:
            reasons[i] = reason
    return pa.array(found, pa.string())


def _checked(value: object) -> tuple[str | None, str | None]:
    if value is None:
        return None, "there is no text"
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError:
            return None, "the text is not UTF-8"
    if not isinstance(value, bytes):
        return None, f"the text must be a string, got {type(value).__name__}"
    try:
        return value.decode(), None
    except UnicodeDecodeError:
        return None, "the text is not UTF-8"


def _column(values: list[Any], field: pa.Field, reasons: list[str | None]) -> pa.Array:
    """Return values as a column of the field's type. One that does not fit is null, and its row has the reason."""
    for i, value in enumerate(values):
        if not _fits(value, field.type):
            values[i] = None
            if reasons[i] is None:
                reasons[i] = f"column {field.name!r} has {field.type} in the first rows, got {value!r:.60}"
    return pa.array(values, field.type)


def _fits(value: object, of_type: pa.DataType) -> bool:
    """Return whether a JSON value can be stored as it is. Arrow would make 3 of 3.5, and drop unknown keys."""
    if value is None:
        return True
    kinds = pa.types
    if isinstance(value, list):
        return bool(kinds.is_list(of_type)) and all(_fits(each, of_type.value_type) for each in value)
    if isinstance(value, dict):
        types = {field.name: field.type for field in of_type} if kinds.is_struct(of_type) else None
        return types is not None and all(
            name in types and _fits(each, types[name]) for name, each in value.items()
        )
    if isinstance(value, str):
        fits = kinds.is_string(of_type) and _checked(value)[1] is None
    elif isinstance(value, bool):
        fits = kinds.is_boolean(of_type)
    elif kinds.is_floating(of_type):
        fits = float(value) == value  # type: ignore[arg-type]  # what is left is a number
    else:
        fits = kinds.is_integer(of_type) and isinstance(value, int) and -(1 << 63) <= value < 1 << 63
    return bool(fits)


def _schema_of(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """Return the columns of some rows, in the order in which they appear, and their types."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([(name, _type_of([row.get(name) for row in rows])) for name in names])


def _type_of(values: Sequence[Any]) -> pa.DataType:
    try:
        found = pa.array(values).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _SEVERAL
    return _without_nulls(found)


def _without_nulls(found: pa.DataType) -> pa.DataType:
    """Return a type in which values that were always missing are strings."""
    if pa.types.is_null(found):
        return pa.string()
    if pa.types.is_list(found):
        return pa.list_(_without_nulls(found.value_type))
    if pa.types.is_struct(found):
        return pa.struct([(field.name, _without_nulls(field.type)) for field in found])
    return found
