"""The vectors of Arrow tables, for engines that process tables on many machines: Ray Data, Spark, Dask."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TypeVar

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from ..model.spec import validation_line
from .arrays import VECTOR
from .engines import Computed, Engine, engine_of
from .errors import FileError
from .options import FileJob
from .rows import as_bytes, string_column
from .run import compute, to_column

_Table = TypeVar("_Table", pa.Table, pa.RecordBatch)

_OF_FILES = {"inputs", "output", "text_column", "columns", "input_format", "delimiter", "window"}
_STARTS = threading.Lock()


class Embed:
    """Adds a column with the vectors of another column's texts to a table or a batch.

    It can be sent to other processes and called in several threads. A process loads a model when it first needs
    it, and once for all objects with the same options.

    text_column: the column with the texts. output_column: name of the column with the vectors, a list of fixed
    size; it replaces a column of this name. options: the options of `bert-serving-encode` that are not about
    files, under their names there: those of the model (model_dir, dtype, max_seq_len, normalize ...), device,
    server, dimensions, prompt, prompt_name, long_text, precision and dedup.

    Raises FileError if an option is wrong, or if the model or the server cannot be used.

    >>> Embed()(pa.table({"text": ["First do it", "then do it right"]}))["vector"].type
    FixedSizeListType(fixed_size_list<item: float>[384])
    """

    def __init__(self, text_column: str = "text", output_column: str = VECTOR, **options: object) -> None:
        try:
            self._job = FileJob.model_validate(options)
        except ValidationError as exc:
            raise FileError(validation_line(exc)) from exc
        if unknown := self._job.model_fields_set & _OF_FILES:
            raise FileError(f"{min(unknown)} is an option of files, not of tables")
        self._text_column = text_column
        self._output_column = output_column

    @property
    def field(self) -> pa.Field:
        """The name and the type of the column with the vectors. Loads the model."""
        one = Computed(np.zeros((1, self._engine.dimension), np.float32), {}, 0, [])
        return pa.field(self._output_column, to_column(one, self._job.precision)[0].type)

    def load(self) -> None:
        """Load the model, or connect to the server, now and not at the first call."""
        assert self._engine

    def __call__(self, table: _Table) -> _Table:
        """Return the table with one more column. Where there is no text, the vector is null."""
        if self._text_column not in table.schema.names:
            raise FileError(f"there is no column {self._text_column!r}; there are {', '.join(table.schema.names)}")
        texts = string_column(as_bytes(table[self._text_column]).to_pylist(), [None] * len(table)).to_pylist()
        vectors, _ = to_column(compute(self._engine, texts, dedup=self._job.dedup), self._job.precision)
        if self._output_column in table.schema.names:
            place = table.schema.names.index(self._output_column)
            return table.set_column(place, self._output_column, vectors)
        return table.append_column(self._output_column, vectors)

    @property
    def _engine(self) -> Engine:
        with _STARTS:
            return _engine_of(self._job)


@lru_cache(maxsize=4)
def _engine_of(job: FileJob) -> Engine:
    return engine_of(job)
