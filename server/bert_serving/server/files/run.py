"""Reads windows of rows, lets an engine compute their vectors, stores them; goes on where a run has stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..model.errors import one_line
from ..number_formats import MAX_FLOAT16, Dtype, converted
from .arrays import VECTOR, vector_column
from .engines import Computed, Engine, engine_of
from .errors import FileError
from .options import FileJob
from .outputs import check_columns, check_output, storable, write_output
from .parts import Parts
from .progress import Progress
from .rows import PLACE, REASON, TEXT
from .sources import Source

# The settings of a run that change its rows and are not in the model's fingerprint.
_SETTINGS = {"input_format", "delimiter", "precision", "dimensions", "prompt", "prompt_name", "long_text"}
_WINDOW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows there were, how many of them have no vector, and how many texts were cut."""

    num_rows: int
    num_bad: int
    num_cut: int


def encode_files(job: FileJob, say: Callable[[str], None]) -> Outcome:
    """Write the vectors of a job's texts. Raises FileError; what is finished then is kept for the next run.

    say: is called with a line for the user.
    """
    output = job.output
    try:
        source = Source(
            job.inputs,
            form=job.input_format,
            delimiter=job.delimiter,
            text_column=job.text_column,
            columns=job.columns,
            output=output,
        )
        check_output(output, source.columns)
        if job.text_column is None and source.text_column != TEXT:
            say(f"the texts are in the column {source.text_column!r}")
        engine = engine_of(job, say)
        with closing(engine), Parts(output, _identity(job, source, engine), is_pipe=not source.paths) as parts:
            if output.exists() and not parts.is_complete:
                raise FileError(f"{output} exists already: remove it first")
            if not parts.is_complete:
                _encode(job, source, engine, parts)
            write_output(output, parts)
            return Outcome(parts.num_rows, parts.num_bad, parts.num_cut)
    except (OSError, pa.ArrowException) as exc:  # a full disk, for example
        raise FileError(f"cannot write {output}: {one_line(exc)}") from exc


def _identity(job: FileJob, source: Source, engine: Engine) -> dict[str, object]:
    """Return what must not change between a run and the run that goes on.

    The model's fingerprint covers its weights and the settings that change its vectors.
    """
    settings = job.model_dump(include=_SETTINGS)
    files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in source.paths]
    columns = {"text_column": source.text_column, "columns": source.columns}
    return {"input": files, **columns, **settings, **engine.identity}


def _encode(job: FileJob, source: Source, engine: Engine, parts: Parts) -> None:
    """Compute and store the rows that are not in the parts. A window is stored while the next one is computed."""
    num_rows = parts.num_rows
    stored: Future[None] | None = None
    windows = _windows(source.batches(), job.window, skip=num_rows)
    with ThreadPoolExecutor(1) as storing, Progress(num_rows) as progress:
        for window, computed in _with_vectors(windows, engine, job, source):
            if stored is not None:
                stored.result()  # raises what storing has raised
            stored = storing.submit(_store, parts, window, computed, source, job)
            num_rows += len(window)
            progress.show(num_rows, computed.num_tokens, total=source.num_rows(num_rows))
        if stored is not None:
            stored.result()


def _with_vectors(
    windows: Iterator[pa.Table], engine: Engine, job: FileJob, source: Source
) -> Iterator[tuple[pa.Table, Computed]]:
    """Yield each window and its vectors. While one is computed, the next one is read and tokenized."""
    ahead: deque[tuple[pa.Table, Future[Computed]]] = deque()
    with ThreadPoolExecutor(2) as threads:
        try:
            for i, window in enumerate(windows):
                if i == 0:
                    check_columns(job.output, window.select(source.columns).schema)
                texts = window[source.text_column].to_pylist()
                ahead.append((window, threads.submit(compute, engine, texts, dedup=job.dedup)))
                if len(ahead) == 2:
                    first, vectors = ahead.popleft()
                    yield first, vectors.result()
            for rest, vectors in ahead:
                yield rest, vectors.result()
        except BaseException:
            engine.close()  # else the threads end only when they have computed their windows
            raise


def _store(parts: Parts, window: pa.Table, computed: Computed, source: Source, job: FileJob) -> None:
    problems = {i: reason for i, reason in enumerate(window[REASON].to_pylist()) if reason is not None}
    vectors, errors = to_column(computed, job.precision)
    copied = [storable(window[name], job.output) for name in source.columns]
    table = pa.table([*copied, vectors], names=[*source.columns, VECTOR])
    bad = []
    for i, reason in sorted((errors | problems).items()):
        row = parts.num_rows + i
        bad.append({"row": row, **source.place(row, window[PLACE][i].as_py()), "error": reason})
    parts.add(table, bad, len(computed.cut))


def to_column(computed: Computed, precision: Dtype) -> tuple[pa.Array, dict[int, str]]:
    """Return vectors as a column, with nulls where there is none; and why there is none, by the row's index."""
    errors = dict(computed.errors)
    if precision == "float16":
        too_large = np.nonzero(np.abs(computed.rows).max(1) > MAX_FLOAT16)[0]
        errors |= dict.fromkeys(too_large.tolist(), "a component is too large for float16")
        computed.rows[too_large] = np.nan
    return vector_column(converted(computed.rows, precision), list(errors)), errors


def compute(engine: Engine, texts: list[str | None], *, dedup: bool) -> Computed:
    """Return the vectors of the texts. dedup: compute equal texts once. A missing text is an error."""
    places: dict[str | int, list[int]] = {}  # of each text that is computed
    for i, text in enumerate(texts):
        if text is not None:
            places.setdefault(text if dedup else i, []).append(i)
    rows = np.full((len(texts), engine.dimension), np.nan, np.float32)
    errors = {i: "there is no text" for i, text in enumerate(texts) if text is None}
    if not places:
        return Computed(rows, errors, 0, [])
    found = engine.encode([str(texts[of_text[0]]) for of_text in places.values()])
    for row, of_text in zip(found.rows, places.values(), strict=True):
        rows[of_text] = row
    of_number = list(places.values())
    errors |= {i: error for number, error in found.errors.items() for i in of_number[number]}
    return Computed(rows, errors, found.num_tokens, [i for number in found.cut for i in of_number[number]])


def _windows(batches: Iterator[pa.RecordBatch], size: int, *, skip: int) -> Iterator[pa.Table]:
    """Yield tables of at most `size` rows and about _WINDOW_BYTES, without the first `skip` rows."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = num_bytes = 0
    for batch in batches:
        start = min(skip, len(batch))
        skip -= start
        while start < len(batch):
            some = batch.slice(start, size - num_waiting)
            start += len(some)
            waiting.append(some)
            num_waiting += len(some)
            num_bytes += some.nbytes
            if num_waiting == size or num_bytes >= _WINDOW_BYTES:
                yield pa.Table.from_batches(waiting)
                waiting, num_waiting, num_bytes = [], 0, 0
    if num_waiting:
        yield pa.Table.from_batches(waiting)
